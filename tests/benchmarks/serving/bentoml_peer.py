"""The same network and codec behind BentoML: bentoml_peer.py PACKAGE PORT."""

import os
import subprocess
import sys
from pathlib import Path

import bentoml
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from refocus.model.checkpoint import ModelPackage
from refocus.model.restore import LoadedModel
from refocus.wire.codec import decode, encode

model = None


def restored(body: bytes) -> bytes:
    global model
    if model is None:
        torch.set_num_threads(os.cpu_count() or 1)
        model = LoadedModel(ModelPackage.load(os.environ["REFOCUS_PACKAGE"]))
    image = decode(body)
    return encode(type(image)(model.restore(image.planes, axes="ZYX").pixels))


async def refocus(request: Request) -> Response:
    import anyio

    body = await request.body()
    return Response(await anyio.to_thread.run_sync(restored, body), media_type="image/tiff")


# BentoML's own input types write every image to disk; a raw body goes through its ASGI mount.
@bentoml.service(workers=1, traffic={"timeout": 300})
@bentoml.asgi_app(Starlette(routes=[Route("/refocus", refocus, methods=["POST"])]))
class Refocus:
    pass


if __name__ == "__main__":
    environment = {**os.environ, "REFOCUS_PACKAGE": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_peer:Refocus", "--host", "127.0.0.1"]
    raise SystemExit(subprocess.call([*command, "--port", sys.argv[2], "--working-dir", here], env=environment))
