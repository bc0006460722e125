"""Tasks that penult writes, imported into a running Label Studio, exported, and read back.

    python bench/label_studio.py --url http://127.0.0.1:8080 --token TOKEN --root DIR

DIR is the LOCAL_FILES_DOCUMENT_ROOT of that Label Studio, which was started with LOCAL_FILES_SERVING_ENABLED=true and
--enable-legacy-api-token. Makes a project, serves a few images from DIR/penult-check, and fails if the labels, guesses
or images differ.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image

from penult.label.exchange import label_studio_config, label_studio_tasks, read_labels
from penult.label.labels_file import Label, LabelsFile

LABELS = {"cats/a 1.jpg": "cat", "cats/b%41.jpg": "cat", "dogs/a 1.jpg": "big dog", "dogs/ü+&#.jpg": 'hünd <x> & "q"'}
GUESSES = {"c,d.jpg": ("big dog", 0.5), "e.jpg": ("cat", 0.75)}
IDS = (*LABELS, *GUESSES, "plain.jpg")


def main() -> int:
    """Check the round trip; print what was equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    root = arguments.root / "penult-check"
    for image in IDS:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (90, 120, 20)).save(root / image)
    with (
        httpx.Client(base_url=arguments.url, headers={"Authorization": f"Token {arguments.token}"}) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        client.get("/api/version").raise_for_status()
        problems = check(client, root, Path(folder))
    print("\n".join(problems) or "labels, guesses and images are equal in JSON and JSON-MIN")
    return bool(problems)


def check(client: httpx.Client, root: Path, folder: Path) -> list[str]:
    """Return what differs."""
    file = LabelsFile(folder / "labels.csv", root)
    file.put([Label(image, label) for image, label in LABELS.items()])
    tasks = label_studio_tasks(file, root, IDS, GUESSES, "pets 3")
    file.close()
    config = label_studio_config(sorted(set(LABELS.values())))
    project = post(client, "/api/projects/", {"title": "penult", "label_config": config})["id"]
    post(client, "/api/storages/localfiles/", {"project": project, "path": str(root), "use_blob_urls": True})
    answer = client.post(f"/api/projects/{project}/import", content=tasks, headers={"Content-Type": "application/json"})
    answer.raise_for_status()
    problems = []
    for kind in ("JSON", "JSON_MIN"):
        options = {"exportType": kind, "download_all_tasks": "true"}
        exported = folder / f"{kind}.json"
        exported.write_bytes(client.get(f"/api/projects/{project}/export", params=options).raise_for_status().content)
        found = read_labels(exported, root, IDS)
        if found.labels != LABELS:
            problems.append(f"{kind}: {found}")
    listed = client.get("/api/tasks", params={"project": project, "fields": "all"}).raise_for_status().json()["tasks"]
    scores = [(each["score"], each["model_version"]) for task in listed for each in task["predictions"]]
    if sorted(scores) != sorted((score, "pets 3") for _, score in GUESSES.values()):
        problems.append(f"predictions: {scores}")
    for task in listed:
        answer = client.get(task["data"]["image"])
        if answer.status_code != httpx.codes.OK or answer.headers["content-type"] != "image/jpeg":
            problems.append(f"{task['data']['image']}: {answer.status_code}")
    return problems


def post(client: httpx.Client, path: str, body: dict) -> dict:
    """Post JSON and return the answer."""
    return client.post(path, json=body).raise_for_status().json()


if __name__ == "__main__":
    sys.exit(main())
