"""The same network and codec behind LitServe: litserve_peer.py PACKAGE PORT."""

import os
import sys
from typing import Annotated

import litserve
import torch
from fastapi import Body, Response

from refocus.model.checkpoint import ModelPackage
from refocus.model.restore import LoadedModel
from refocus.wire.codec import decode, encode


class Refocus(litserve.LitAPI):
    def __init__(self, package: str) -> None:
        super().__init__(api_path="/refocus")
        self.package = package

    def setup(self, device: str) -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        self.model = LoadedModel(ModelPackage.load(self.package))

    # Not a Request: of those, LitServe reads forms and JSON alone.
    def decode_request(self, request: Annotated[bytes, Body(media_type="image/tiff")]):
        return decode(request)

    def predict(self, image):
        return type(image)(self.model.restore(image.planes, axes="ZYX").pixels)

    def encode_response(self, output) -> Response:
        return Response(encode(output), media_type="image/tiff")


if __name__ == "__main__":
    server = litserve.LitServer(Refocus(sys.argv[1]), accelerator="auto", timeout=300)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
