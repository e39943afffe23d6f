"""Seconds that sentences of 1, 2 and 4 times SIZE characters take, then those of a plain scan: `time_sections.py SIZE`, text on stdin."""

import gc
import re
import sys
import time

from input_pipeline.sections import report_sentences

SECONDS = 60


def scan(text: str) -> list[str]:
    """Something linear that makes as many small strings."""
    return [match.group() for match in re.finditer(r"\S{1,8}|\s", text)]


def main() -> None:
    """Takes the sizes in turn, so that a busy moment of the machine does not fall on one alone, and again for a while where that seems to be so.

    Noise only adds time, and what is slower than the text has a ratio of 4 however often it is tried.
    """
    unit, size = sys.stdin.read(), int(sys.argv[1])
    texts = [unit * (factor * size // len(unit)) for factor in (1, 2, 4)]
    best = {report_sentences: [float("inf")] * 3, scan: [float("inf")] * 3}
    report_sentences(texts[0][:50_000])
    gc.disable()
    end, found = time.monotonic() + SECONDS, best[report_sentences]
    while found[0] == float("inf") or (max(found[1] / found[0], found[2] / found[1]) >= 2.2 and time.monotonic() < end):
        for index, text in enumerate(texts):
            for function, seconds in best.items():
                start = time.process_time()
                function(text)
                seconds[index] = min(seconds[index], time.process_time() - start)
    print(*best[report_sentences], *best[scan])


if __name__ == "__main__":
    main()
