"""The table: what the graph answers for a batch of images, as columns; one row an image, in the source's order.

    table = Table(bundle, ScoreOptions(top_k=3))
    rows = table.rows(keys, found, outputs)

The numbers are the graph's own float32, which the server rounds to as many digits as float32 holds. What does not apply
to a row, or to a bundle, is null. Only a bundle that has held-out images has columns of the typicality and the flags,
and only one that names components that of their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.batch.options import Returned, ScoreOptions
from serving.bundle import Bundle, Manifest, OutputName
from serving.errors import ServingError
from serving.held_out import HeldOut
from serving.judgement import check_options, flags, prediction_sets
from serving.parameters import DEFAULT_OPTIONS
from serving.runtimes import Outputs

NUMBER = pa.float32()
P_VALUE = pa.float64()  # no graph's, and compared with round numbers
TEXTS = pa.list_(pa.string())
RETURNED: Mapping[Returned, pa.DataType] = {
    Returned.PROBABILITIES: pa.list_(NUMBER),  # in the order of the bundle's labels
    Returned.RESPONSIBILITIES: pa.list_(pa.list_(NUMBER)),  # of each label its components
    Returned.FEATURES: pa.list_(NUMBER),
}
OF_OUTPUT: Mapping[Returned, OutputName] = {
    Returned.PROBABILITIES: "posterior",
    Returned.RESPONSIBILITIES: "responsibilities",
    Returned.FEATURES: "features",
}


class Table:
    """Makes rows of a bundle's answers.

    Attributes:
        schema: their columns.
    """

    def __init__(self, bundle: Bundle, options: ScoreOptions) -> None:
        """Choose the columns.

        Args:
            bundle: whose answers.
            options: which of them.

        Raises:
            ServingError: if the bundle does not answer what is to be returned, or cannot tell what is asked for.
        """
        manifest, held_out = bundle.manifest, bundle.held_out(options.precision)
        if Returned.RESPONSIBILITIES in options.returns and "responsibilities" not in manifest.outputs:
            outputs = ", ".join(manifest.outputs)
            raise ServingError(f"what to return must be an output of {manifest.name} ({outputs}), got responsibilities")
        self._bundle = bundle
        self._held_out = None if held_out is None else HeldOut.read(held_out)
        self._asked = replace(DEFAULT_OPTIONS, coverage=options.coverage)  # of each image, as by a request
        check_options(self._asked, manifest, self._held_out)
        self._labels = pa.array(manifest.labels, pa.string())
        self._names = _component_names(manifest)
        self._top_k = min(options.top_k, manifest.head.classes)
        self._returns = options.returns
        self._candidate = _candidate(manifest)
        self.schema = pa.schema(self._fields(options))

    def rows(self, keys: Sequence[str], found: Sequence[int | ServingError], outputs: Outputs | None) -> pa.RecordBatch:
        """The rows of some images.

        Args:
            keys: their names.
            found: for each its place in the outputs, or its error.
            outputs: arrays by the manifest's names, each (N, ...); None if no image has an answer.
        """
        manifest, count = self._bundle.manifest, len(keys)
        places = pa.array([place if isinstance(place, int) else None for place in found], pa.int32())
        errors = [place if isinstance(place, ServingError) else None for place in found]
        columns = {
            "key": pa.array(keys, pa.string()),
            "error_code": pa.array([error and error.code for error in errors], pa.string()),
            "error_message": pa.array([error and str(error) for error in errors], pa.string()),
            "model": pa.repeat(manifest.name, count),
            "version": pa.repeat(pa.scalar(manifest.version, pa.int32()), count),
            "bundle_digest": pa.repeat(self._bundle.digest, count),
        }
        if outputs is not None:
            columns |= {name: column.take(places) for name, column in self._answers(outputs).items()}
        empty = {field.name: pa.nulls(count, field.type) for field in self.schema if field.name not in columns}
        return pa.record_batch([(columns | empty)[name] for name in self.schema.names], schema=self.schema)

    def _answers(self, outputs: Outputs) -> dict[str, pa.Array]:
        """The columns of N answers; None for what the bundle does not know."""
        posterior = outputs["posterior"]
        ranked = np.argsort(-posterior, axis=1, kind="stable")[:, : self._top_k]  # as the server ranks
        columns = self._candidates(outputs, ranked[:, :1])
        if "log_density" in outputs:
            columns["log_density"] = pa.array(outputs["log_density"], NUMBER)
        columns |= self._judged(outputs)
        if "top_k" in self.schema.names:
            nothing = {field.name: pa.nulls(ranked.size, field.type) for field in self._candidate}
            of_all = nothing | self._candidates(outputs, ranked)
            structs = [of_all[field.name] for field in self._candidate]
            columns["top_k"] = _lists(pa.StructArray.from_arrays(structs, fields=self._candidate), ranked.shape[1])
        nested = {name: _nested(outputs[OF_OUTPUT[name]]) for name in self._returns}
        return columns | nested

    def _candidates(self, outputs: Outputs, ranked: NDArray[np.int64]) -> dict[str, pa.Array]:
        """The columns of the classes `ranked`, (N, k), one row after the other."""
        images, classes = np.repeat(np.arange(len(ranked)), ranked.shape[1]), ranked.ravel()
        columns = {
            "label": self._labels.take(pa.array(classes)),
            "probability": pa.array(outputs["posterior"][images, classes], NUMBER),
        }
        if "responsibilities" in outputs:
            weights = outputs["responsibilities"][images, classes]
            columns["component"] = pa.array(weights.argmax(1), pa.int32())
            if self._names is not None:
                columns["component_name"] = pa.array(self._names[classes, weights.argmax(1)].tolist(), pa.string())
            columns["component_probability"] = pa.array(weights.max(1), NUMBER)
        return columns

    def _fields(self, options: ScoreOptions) -> list[pa.Field]:
        return [
            pa.field("key", pa.string(), nullable=False),
            *self._candidate,
            pa.field("log_density", NUMBER),
            *self._judged_fields(),
            *([pa.field("top_k", pa.list_(pa.struct(self._candidate)))] if options.top_k > 1 else []),
            *(pa.field(name, kind) for name, kind in RETURNED.items() if name in options.returns),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("model", pa.string(), nullable=False),
            pa.field("version", pa.int32(), nullable=False),
            pa.field("bundle_digest", pa.string(), nullable=False),
        ]

    def _judged_fields(self) -> list[pa.Field]:
        if self._held_out is None:
            return []
        sets = [] if self._asked.coverage is None else [pa.field("labels_at", TEXTS)]
        return [pa.field("typicality", P_VALUE), *sets, pa.field("flags", TEXTS)]

    def _judged(self, outputs: Outputs) -> dict[str, pa.Array]:
        """The columns that held-out images tell."""
        if self._held_out is None:
            return {}
        posterior, typicality = outputs["posterior"], self._held_out.typicality(outputs["typicality_score"])
        each = zip(posterior.max(1).tolist(), typicality.tolist(), strict=True)
        words = [flags(probability, share, self._asked, self._held_out) for probability, share in each]
        columns = {"typicality": pa.array(typicality, P_VALUE), "flags": pa.array(words, TEXTS)}
        if self._asked.coverage is not None:
            asked = [self._asked] * len(posterior)
            sets = prediction_sets(posterior, posterior, self._bundle.manifest.labels, asked, self._held_out)
            columns["labels_at"] = pa.array([sets[n] for n in range(len(posterior))], TEXTS)
        return columns


def _candidate(manifest: Manifest) -> list[pa.Field]:
    """The columns of a class."""
    return [
        pa.field("label", pa.string()),
        pa.field("probability", NUMBER),
        pa.field("component", pa.int32()),
        *([pa.field("component_name", pa.string())] if manifest.component_names else []),
        pa.field("component_probability", NUMBER),
    ]


def _component_names(manifest: Manifest) -> NDArray[np.object_] | None:
    """What people call each component, (C, K), None where they do not; None if the bundle names none."""
    if not manifest.component_names:
        return None
    of_labels = [manifest.component_names.get(label, {}) for label in manifest.labels]
    return np.array([[names.get(k) for k in range(manifest.head.components)] for names in of_labels], np.object_)


def _nested(values: NDArray[Any]) -> pa.Array:
    """(N, ...) as N lists, of lists if there are more axes."""
    nested = pa.array(values.ravel(), NUMBER)
    for size in reversed(values.shape[1:]):
        nested = _lists(nested, size)
    return nested


def _lists(values: pa.Array, size: int) -> pa.Array:
    """Values as lists of `size`, one after the other."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, size), pa.int32()), values)
