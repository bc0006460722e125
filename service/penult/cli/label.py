"""`penult label`: a page that shows the photo most worth a label, and learns from every answer."""

import argparse
import json
import webbrowser
from contextlib import suppress
from typing import Any

from penult.console import say
from penult.label.settings import LabelSettings

add_arguments = LabelSettings.add_arguments


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or replay, or export; return 0."""
    settings = LabelSettings.load(arguments)
    from penult.label.start import export, network_of, session_of

    network = network_of(settings)
    if settings.export:
        print(f"{export(settings, network)} photos are in {settings.export}")
        return 0
    if settings.replay:
        return _replay(settings, network, arguments.json)
    session = session_of(settings, network)
    try:
        _serve(settings, session, arguments.json)
    finally:
        session.close()
    return 0


def _replay(settings: LabelSettings, network: Any, is_json: bool) -> int:
    """Play labelling: print the curve of one strategy as JSON, or compare both."""
    from penult.label.replay import compare, play, truth_of

    truth = truth_of(settings, network)
    if is_json:
        print(json.dumps(play(truth, settings.strategy, settings.budget, settings.seed).as_json()))
    else:
        print(f"picture: {compare(settings, truth)}")
    return 0


def _serve(settings: LabelSettings, session: Any, is_json: bool) -> None:
    """Print the page's address, open it, and answer it until Ctrl-C."""
    from penult.label.server import LabelServer

    server, state = LabelServer(session, settings.port), session.state()
    if is_json:
        found = {"url": server.url, **{key: state[key] for key in ("photos", "labelled", "labels_file")}}
        print(json.dumps(found, ensure_ascii=False), flush=True)
    else:
        print(f"{state['photos']} photos, {state['labelled']} labelled; answers go into {settings.labels}")
        print(f"page: {server.url}", flush=True)
        say("Ctrl-C ends; every answer is in the file")
    if settings.browser:
        webbrowser.open(server.url)
    with suppress(KeyboardInterrupt):
        server.run()
    say(f"to train: {session.state()['train_command']}")
