"""The tables on how fast bundles are served and scored offline, beside the bare speed of the machine."""

from typing import Any

from training.marked import explained, markdown, named


def serving_table(results: dict[str, Any]) -> str:
    """What of the bare graph's speed arrives at the other end of HTTP."""
    head = ("model", "precision", "at once", "answers/s", "bare images/s", "ratio", "p50 ms", "p99 ms", "bare ms", "on")
    measured = ("connections", "answers_per_second", "bare_per_second", "ratio", "p50_ms", "p99_ms", "bare_ms")
    rows = [
        (
            named("serving", row["bundle"], row) + photo_in_words(row),
            row["precision"],
            *(f"{at[key]:g}" for key in measured),
            row["machine"],
        )
        for row in results.get("serving", {}).values()
        for at in row["rows"]
    ]
    return explained(markdown(head, rows), "serving", results)


def photo_in_words(row: dict[str, Any]) -> str:
    """What stands behind a model's name where it was asked about a photo; else it was about a drawn shape."""
    return f", {row['image']} of {row['image_bytes'] / 1000:,.0f} kB" if "image" in row else ""


def batch_table(results: dict[str, Any]) -> str:
    """What of the bare speed of graph and decoding offline scoring reaches, and what its peers do."""
    head = ["model", "precision", "images", "as", "by", "images/s", "whole command", "ratio", "of both", "peak MB"]
    head += ["bare runtime", "bare decoding", "limit", "on"]
    measured = ("images_per_second", "command_images_per_second", "ratio", "ratio_of_both", "peak_mb")
    rows = [
        (
            named("batch", record["bundle"], record),
            record["precision"],
            record["images"],
            row["form"],
            row["by"],
            *(f"{row[key]:g}" for key in measured),
            *(f"{record[key]:g}" for key in ("runtime_per_second", "decoding_per_second")),
            record["limit"],
            record["machine"],
        )
        for record in results.get("batch", {}).values()
        for row in record["rows"]
    ]
    return explained(markdown(head, rows), "batch", results)


def beside_table(results: dict[str, Any]) -> str:
    """What offline scoring does to a server's latency."""
    head = ("model", "requests/s", "", "p50 ms", "p99 ms", "failed", "scored images/s", "on")
    measured = ("p50_ms", "p99_ms", "failed", "scored_per_second")
    rows = [
        (
            named("beside", record["bundle"], record),
            f"{record['offered_per_second']:g}",
            name,
            *(f"{row[key]:g}" for key in measured),
            record["machine"],
        )
        for record in results.get("beside", {}).values()
        for name, row in record["rows"].items()
    ]
    return explained(markdown(head, rows), "beside", results)


def batch_names(results: dict[str, Any]) -> str:
    """What a very long list of images costs before the first of them are done; nothing if that was not measured."""
    return "\n".join(
        f"A text file of {names['count']:,} paths: the first image is scored after about "
        f"{names['seconds_to_first_image']:g} s, the first part is there after {names['seconds_to_first_part']:g} s; "
        f"peak memory until some parts are, {names['peak_mb']:,} MB."
        for record in results.get("batch", {}).values()
        if (names := record.get("names"))
    )
