"""What one request may ask for, so that no stranger keeps a worker busy for long.

With the defaults no request takes a worker longer than a second and a half on two cores, whatever is in it; what the
graph takes for its images is part of that, see `budget.py`.
"""

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """What one request may ask for.

    Attributes:
        max_bytes: size of one encoded image.
        max_pixels: height times width of one image.
        max_side: height of one image, and its width.
        max_instances: images in one request.
        max_request_pixels: of all images of one request together. They count as decoding takes: half for a JPEG, a
            third more for a WebP or where they may be transparent, twice or more at 16 bits or for a JPEG of very many
            scans, and up to eleven times for a WebP without loss.
        max_request_bytes: size of one request.
        max_response_bytes: size of the answers to one request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    max_pixels: int = Field(default=40_000_000, ge=1)
    max_side: int = Field(default=32_768, ge=1)
    max_instances: int = Field(default=256, ge=1)
    max_request_pixels: int = Field(default=24_000_000, ge=1)
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1)
    max_response_bytes: int = Field(default=16 * 1024 * 1024, ge=1)


DEFAULT_LIMITS = Limits()
