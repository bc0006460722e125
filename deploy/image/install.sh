#!/bin/sh
# Fills /opt/penult in the Dockerfile's build stages.
#   install.sh tools          tools for the other steps, and an empty /opt/penult
#   install.sh lock FILE.txt…  locked packages, verified by hash, without files that only developers need
#   install.sh penult          penult itself, from the source beside it
#   install.sh list            /sbom.json: the installed packages, in CycloneDX
# Two optional build secrets support a mirror or a private certificate authority. `network` has lines of NAME=VALUE for
# pip and uv (PIP_INDEX_URL, UV_DEFAULT_INDEX, …), `ca` has certificates in PEM.
set -eu

set -a
if [ -f /run/secrets/network ]; then . /run/secrets/network; fi
if [ -f /run/secrets/ca ]; then SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi
UV_LINK_MODE=copy UV_HTTP_TIMEOUT=300 UV_PYTHON_DOWNLOADS=never
set +a

tools() { # not part of the image: the installer and the generator of the bill of materials
  python3 -m venv /tools
  /tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
  /tools/bin/uv pip install --quiet --python /tools/bin/python --require-hashes -r locks/sbom.txt
  python3 -m venv --without-pip /opt/penult
  mkdir -p /empty/models /empty/lookup
}

slim() { # removes tests, headers, static libraries and sources, which are never imported; keeps licences
  cd /opt/penult/lib/python3*/site-packages
  find . -type d \( -name tests -o -path './nvidia/*/include' -o -path './numpy/*/include' \) -prune -exec rm -rf {} +
  find . -type f \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' \) -delete
}

compile() { # the root is read-only at run time; by hash, because an image may round the files' times
  python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/penult/lib
}

list() {
  /tools/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --mc-type application \
    --output-file /sbom.json /opt/penult/bin/python
}

case "$1" in
  tools) tools ;;
  lock)
    shift
    for lock; do set -- "$@" -r "locks/$lock"; shift; done
    /tools/bin/uv pip install --quiet --python /opt/penult/bin/python --require-hashes "$@"
    slim
    compile || true # torch ships a file for a later Python only; a test sees that all of `cpu` is compiled
    ;;
  penult)
    /tools/bin/uv pip install --quiet --python /opt/penult/bin/python --no-deps .
    compile
    ;;
  list) list ;;
esac
