"""Asks a server with the unmodified tritonclient, and through reflection alone: run by an environment of its own.

    python triton_client.py GRPC_TARGET HTTP_TARGET MODEL FOLDER

FOLDER holds the photos, and crops.npy, uint8 [N, crop, crop, 3], of the same photos. Prints JSON. Never imports penult.
"""

import asyncio
import json
import queue
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

CHUNK = 32


def image_input(photos: list[bytes], api=triton, **form: bool) -> list:
    tensor = api.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_), **form)
    return [tensor]


def pixel_input(crops: np.ndarray, api=triton, **form: bool) -> list:
    tensor = api.InferInput("pixels", list(crops.shape), "UINT8" if crops.dtype == np.uint8 else "FP32")
    tensor.set_data_from_numpy(crops, **form)
    return [tensor]


def chunks(photos: list[bytes], crops: np.ndarray, api=triton) -> dict[str, list[list]]:
    """Return the requests of each kind of input."""
    starts = range(0, len(photos), CHUNK)
    return {
        "image": [image_input(photos[at : at + CHUNK], api) for at in starts],
        "uint8": [pixel_input(crops[at : at + CHUNK], api) for at in starts],
        "fp32": [pixel_input(crops[at : at + CHUNK].astype(np.float32), api) for at in starts],
    }


OUTPUTS = [triton.InferRequestedOutput("labels")]


def texts(results: list[triton.InferResult]) -> list[str]:
    return [text.decode() for result in results for text in result.as_numpy("labels")]


def ask_sync(target: str, model: str, requests: dict) -> dict:
    with triton.InferenceServerClient(target) as client:
        labels = {
            kind: texts([client.infer(model, inputs, outputs=OUTPUTS) for inputs in parts])
            for kind, parts in requests.items()
        }
        everything = client.infer(model, requests["image"][0], request_id="7")
        best = client.infer(
            model, requests["image"][0], outputs=[triton.InferRequestedOutput("probabilities", class_count=2)]
        )
        told = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready("absent"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "statistics": client.get_inference_statistics(model, as_json=True),
        }
        told["shapes"] = {o.name: list(o.shape) for o in everything.get_response().outputs}
        told["id"] = everything.get_response().id
        told["logits"] = everything.as_numpy("logits").tolist()
        told["best"] = [[text.decode() for text in row] for row in best.as_numpy("probabilities")]
        told["error"] = refused(lambda: client.infer("absent", requests["image"][0]))
        told["load"] = refused(lambda: client.load_model(model))
        told["shared_memory"] = refused(lambda: client.get_system_shared_memory_status())
    return {"labels": labels, **told}


def refused(act: Callable[[], object]) -> str:
    try:
        act()
    except triton.InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "accepted"


def ask_http(target: str, model: str, photos: list[bytes], crops: np.ndarray) -> dict:
    """The same over HTTP; images in binary form, pixels in JSON too, logits in both."""
    requests = chunks(photos, crops, triton_http)
    outputs = [triton_http.InferRequestedOutput("labels")]
    first = requests["image"][0]
    with triton_http.InferenceServerClient(target) as client:
        labels = {
            kind: texts([client.infer(model, inputs, outputs=outputs) for inputs in parts])
            for kind, parts in requests.items()
        }
        in_json = pixel_input(crops[:4], triton_http, binary_data=False)
        logits = {
            form: client.infer(
                model, inputs, outputs=[triton_http.InferRequestedOutput("logits", binary_data=is_binary)]
            )
            for form, inputs, is_binary in (("json", in_json, False), ("binary", first, True))
        }
        best = client.infer(model, first, outputs=[triton_http.InferRequestedOutput("probabilities", class_count=2)])
        told = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready("absent"),
            "server": client.get_server_metadata(),
            "metadata": client.get_model_metadata(model),
            "config": client.get_model_config(model),
            "index": client.get_model_repository_index(),
            "statistics": client.get_inference_statistics(model),
            "error": refused(lambda: client.infer("absent", first)),
            "load": refused(lambda: client.load_model(model)),
        }
    return {
        "labels": labels,
        "told": told,
        "best": [[text.decode() for text in row] for row in best.as_numpy("probabilities")],
        **{form: result.as_numpy("logits").tolist() for form, result in logits.items()},
    }


async def ask_http_aio(target: str, model: str, photos: list[bytes], crops: np.ndarray) -> dict:
    outputs = [triton_http_aio.InferRequestedOutput("labels")]
    async with triton_http_aio.InferenceServerClient(target) as client:
        return {
            "labels": {
                kind: texts([await client.infer(model, inputs, outputs=outputs) for inputs in parts])
                for kind, parts in chunks(photos, crops, triton_http_aio).items()
            }
        }


def ask_stream(target: str, model: str, requests: dict) -> list[str]:
    found: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: found.put(error or result))
        for inputs in requests["image"]:
            client.async_stream_infer(model, inputs, outputs=OUTPUTS)
        results = [found.get(timeout=60) for _ in requests["image"]]
        client.stop_stream()
    return texts(results)


async def ask_aio(target: str, model: str, requests: dict) -> dict[str, list[str]]:
    async with triton_aio.InferenceServerClient(target) as client:
        return {
            kind: texts(await asyncio.gather(*(client.infer(model, inputs, outputs=OUTPUTS) for inputs in parts)))
            for kind, parts in requests.items()
        }


def ask_by_reflection(target: str, model: str, photos: list[bytes]) -> dict:
    """Find the service, its methods and messages by asking the server; typed contents, no generated code."""
    with grpc.insecure_channel(target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = sorted(database.get_services())
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
        request = message_factory.GetMessageClass(method.input_type)(model_name=model)
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[len(photos)])
        tensor.contents.bytes_contents.extend(photos)
        request.outputs.add(name="labels")
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        labels = [text.decode() for text in call(request, timeout=60).outputs[0].contents.bytes_contents]
    return {"services": services, "labels": labels}


def main() -> None:
    target, http, model, folder = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    photos = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".npy"]
    crops = np.load(folder / "crops.npy")
    requests = chunks(photos, crops)
    print(
        json.dumps(
            {
                "sync": ask_sync(target, model, requests),
                "aio": asyncio.run(ask_aio(target, model, requests)),
                "stream": ask_stream(target, model, requests),
                "reflection": ask_by_reflection(target, model, photos[:50]),
                "http": ask_http(http, model, photos, crops),
                "http_aio": asyncio.run(ask_http_aio(http, model, photos, crops)),
                "penult": [name for name in sys.modules if name.startswith("penult")],
            }
        )
    )


if __name__ == "__main__":
    main()
