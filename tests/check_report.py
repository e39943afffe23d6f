"""Fails when no test ran, or when one was skipped for a reason other than slow, accelerator, or missing real data or timm.

Usage: python tests/check_report.py report.xml
"""

import os
import sys
import xml.etree.ElementTree as ET


def main(path: str) -> int:
    root = ET.parse(path).getroot()
    cases = list(root.iter("testcase"))
    skipped = [(case, mark) for case in cases for mark in case.findall("skipped")]
    allowed = ("slow", "accelerator", "timm is not installed")  # no extra can ask for timm without its torchvision
    allowed += () if os.environ.get("MSFL_REAL_DATA") else ("no real data",)
    unexpected = [(c, m) for c, m in skipped if not any(word in (m.get("message") or "") for word in allowed)]
    for case, mark in unexpected:
        print(f"skipped: {case.get('classname')}::{case.get('name')}: {mark.get('message')}")
    ran = len(cases) - len(skipped)
    print(f"{ran} tests ran, {len(skipped)} skipped, {len(unexpected)} of them without leave")
    return 0 if ran and not unexpected else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
