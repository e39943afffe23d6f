"""A synthetic chest radiograph study in the layout of MIMIC-CXR-JPG: schematic images, findings with exact masks, varied reports."""

from input_pipeline.datasets.synthetic.study import FINDINGS
from input_pipeline.datasets.synthetic.write import StudySummary, synthesize

__all__ = ["FINDINGS", "StudySummary", "synthesize"]
