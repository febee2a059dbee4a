"""Commands of the container tools, each written into the log with what it says.

shell = Shell(Path("image-check.log"))
shell.run("buildah", "images")        # its standard output, or `Failed`
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

MOST_CHARACTERS = 300  # of what a command that failed has said


class Failed(Exception):
    """The image, or what it was built or run with, does not do what it should; the message is for people."""


@dataclass(frozen=True)
class Shell:
    """Runs commands.

    Attributes:
        log: file that gets each command, its output and its exit code.
    """

    log: Path

    def run(self, *command: str | Path) -> str:
        """The standard output of a command.

        Raises:
            Failed: if its exit code is not 0.
        """
        done = self.attempt(*command)
        if done.returncode:
            words = [word for word in map(str, command) if not word.startswith("-")]
            raise Failed(
                f"{' '.join(words[:2])} must succeed, got exit code {done.returncode}: {_last_words(done.stderr)}"
            )
        return done.stdout

    def attempt(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True)
            print(done.stdout, done.stderr, f"exit code {done.returncode}", sep="\n", file=log)
        return done

    def begin(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """A command that goes on; its output goes into the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _last_words(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][-MOST_CHARACTERS:]
