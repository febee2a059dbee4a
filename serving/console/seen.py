"""What a model sees of an image: the size, the box that is kept of it, and the pixels that the graph takes.

    seen(image, known.manifest.input, known.limits)

    {"size": [640, 480], "box": [80, 0, 560, 480], "input": "data:image/png;base64,..."}

It is made by the server's own code, in the console.
"""

import base64
import io
from typing import Any

from PIL import Image

from serving.bundle import InputSpec
from serving.decode import TURNED, open_image
from serving.limits import Limits
from serving.preprocess import read_open_image, seen_box


def seen(data: bytes, spec: InputSpec, limits: Limits) -> dict[str, Any]:
    """What is left of an image: `size` (width, height), upright; `box` in its pixels; `input` at the model's size.

    Raises:
        ImageError: if the image cannot be read.
    """
    opened = open_image(data, limits)
    width, height = opened.picture.size
    if opened.orientation in TURNED:
        width, height = height, width
    pixels = read_open_image(opened, spec)
    picture = Image.fromarray(pixels[0] if spec.channels == 1 else pixels.transpose(1, 2, 0))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    box = seen_box(height, width, spec)
    return {"size": [width, height], "box": list(box), "input": f"data:image/png;base64,{text}"}
