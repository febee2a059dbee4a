"""How a version of a model is served by Triton: `settings.json` beside its bundle.

{"settings": {"precision": "int8", "batch_size": 32, ...}, "device": "cpu", "instances": 2, "request_log": null}
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import ServerError
from serving.settings import WorkerSettings

FILE = "settings.json"

Device = Literal["cpu", "gpu"]


class Served(BaseModel):
    """How a version is served.

    Attributes:
        settings: of every server. Triton has no use for `timeout_s`, as it replaces no instance.
        device: that its instances compute on.
        instances: processes; on GPUs, of each of them.
        request_log: folder of the request log, if there is to be one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: WorkerSettings
    device: Device = "cpu"
    instances: int = Field(ge=1)
    request_log: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """That of a version's folder.

        Raises:
            ServerError: if there is none.
        """
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except (OSError, ValidationError) as exc:
            raise ServerError(
                f"{folder} must hold {FILE}, as `python -m serving triton` writes it, got {exc}: write it anew"
            ) from exc

    def write(self, folder: Path) -> None:
        """Write it into a version's folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n")
