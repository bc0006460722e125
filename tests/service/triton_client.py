"""Asks a server with the unmodified tritonclient, and through reflection alone: run by an environment of its own.

    python triton_client.py GRPC_TARGET MODEL FOLDER

FOLDER holds the photos, and crops.npy, uint8 [N, crop, crop, 3], of the same photos. Prints JSON. Never imports penult.
"""

import asyncio
import json
import queue
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

CHUNK = 32


def image_input(photos: list[bytes]) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_))
    return [tensor]


def pixel_input(crops: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("pixels", list(crops.shape), "UINT8" if crops.dtype == np.uint8 else "FP32")
    tensor.set_data_from_numpy(crops)
    return [tensor]


def chunks(photos: list[bytes], crops: np.ndarray) -> dict[str, list[list[triton.InferInput]]]:
    """Return the requests of each kind of input."""
    starts = range(0, len(photos), CHUNK)
    return {
        "image": [image_input(photos[at : at + CHUNK]) for at in starts],
        "uint8": [pixel_input(crops[at : at + CHUNK]) for at in starts],
        "fp32": [pixel_input(crops[at : at + CHUNK].astype(np.float32)) for at in starts],
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


def refused(act) -> str:
    try:
        act()
    except triton.InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "accepted"


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
    target, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    photos = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".npy"]
    requests = chunks(photos, np.load(folder / "crops.npy"))
    print(
        json.dumps(
            {
                "sync": ask_sync(target, model, requests),
                "aio": asyncio.run(ask_aio(target, model, requests)),
                "stream": ask_stream(target, model, requests),
                "reflection": ask_by_reflection(target, model, photos[:50]),
                "penult": [name for name in sys.modules if name.startswith("penult")],
            }
        )
    )


if __name__ == "__main__":
    main()
