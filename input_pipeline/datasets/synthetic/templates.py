"""What reports say, in three banks that share words but no sentence template and no location phrase: train, validate, test.

Slots: {grade} and {gradely} severity, {noun} the finding's name, {side} left, right or bilateral, {place} a phrase with its preposition
("at the base of the left lung"), {lobe} the same place as an adjective ("left lower lobe"), {size} millimetres, {device}, {a} {b} {c}
findings that are absent. Single words (severities, names, sides) are shared: held-out sentences recombine what training has taught.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from input_pipeline.datasets.synthetic.vocabulary import Phrases


@dataclass(frozen=True, slots=True)
class Bank:
    """The templates and location phrases of one split; findings and zones are keyed by name, `both` by zone for two-sided findings."""

    positive: dict[str, Phrases]
    negative: dict[int, Phrases]  # by how many absent findings a sentence names
    normal_heart: Phrases
    distractors: Phrases
    nothing_acute: Phrases
    place: dict[str, Phrases]
    place_both: dict[str, Phrases]
    lobe: dict[str, Phrases]

    def templates(self) -> Iterator[str]:
        """Every sentence template of the bank."""
        for group in (
            *self.positive.values(),
            *self.negative.values(),
            self.normal_heart,
            self.distractors,
            self.nothing_acute,
        ):
            yield from group

    def places(self) -> Iterator[str]:
        """Every location phrase of the bank."""
        for by_zone in (self.place, self.place_both, self.lobe):
            for group in by_zone.values():
                yield from group


TRAIN = Bank(
    positive={
        "Pneumonia": (
            "{grade} {noun} {place}.",
            "There is a {grade} {noun} {place}.",
            "{grade} {lobe} {noun}.",
            "A {grade} {noun} is seen {place}.",
            "{lobe} {noun} concerning for pneumonia.",
            "{grade} {lobe} {noun} consistent with pneumonia.",
            "{place} there is a {grade} {noun}.",
            "{lobe} pneumonia is present.",
        ),
        "Pleural Effusion": (
            "{grade} {side} {noun}.",
            "There is a {grade} {side} {noun}.",
            "{grade} {noun} {place}.",
            "A {grade} {noun} is seen {place}.",
            "{side} {noun} is present, {grade} in size.",
            "{place} there is a {grade} {noun}.",
            "The {side} costophrenic angle is blunted by a {grade} {noun}.",
            "{grade} fluid layers {place}.",
        ),
        "Pneumothorax": (
            "{grade} {side} pneumothorax.",
            "There is a {grade} {side} pneumothorax.",
            "{grade} pneumothorax {place}.",
            "A {grade} {side} apical pneumothorax is seen.",
            "{place} there is a {grade} pneumothorax.",
            "{side} pneumothorax is present, {grade} in size.",
            "A pleural line is seen {place}, consistent with {grade} pneumothorax.",
        ),
        "Cardiomegaly": (
            "The heart is {gradely} enlarged.",
            "{grade} cardiomegaly.",
            "There is {grade} cardiomegaly.",
            "{grade} enlargement of the heart.",
            "The cardiac silhouette is {gradely} enlarged.",
            "Heart size is {gradely} increased.",
            "{grade} enlargement of the cardiac silhouette is seen.",
        ),
        "Edema": (
            "{grade} {noun}.",
            "There is {grade} {noun}.",
            "{grade} {noun} {place}.",
            "{grade} haze {place}, consistent with edema.",
            "Perihilar haze is present, consistent with {grade} {noun}.",
            "{place} there is {grade} {noun}.",
            "Both hila are hazy, consistent with {grade} {noun}.",
        ),
        "Atelectasis": (
            "{grade} {noun} {place}.",
            "There is {grade} {noun} {place}.",
            "{grade} {lobe} {noun}.",
            "{lobe} {noun} is present.",
            "{noun} is seen {place}.",
            "{place} there is {grade} {noun}.",
            "Linear bands {place}, consistent with {grade} atelectasis.",
        ),
        "Lung Lesion": (
            "{size} mm {noun} {place}.",
            "There is a {noun} {place}.",
            "A {size} mm {lobe} {noun} is seen.",
            "{lobe} {noun} measuring {size} mm.",
            "{place} there is a {size} mm {noun}.",
            "{grade} {lobe} {noun}.",
            "A {grade} {noun} is seen {place}.",
        ),
        "Support Devices": (
            "{device} is in place.",
            "There is a {device}.",
            "A {device} is seen.",
            "{device} in standard position.",
            "The {device} is unchanged in position.",
            "Support devices include a {device}.",
            "A support device is present, a {device}.",
        ),
    },
    negative={
        1: ("No {a}.", "There is no {a}.", "There is no evidence of {a}.", "{a} is not seen."),
        2: (
            "No {a} or {b}.",
            "There is no {a} or {b}.",
            "No evidence of {a} and no {b}.",
            "Neither {a} nor {b} is present.",
        ),
        3: ("No {a}, {b} or {c}.", "There is no {a}, {b}, or {c} seen."),
    },
    normal_heart=(
        "The heart is normal in size.",
        "Heart size is normal.",
        "The cardiac silhouette is not enlarged.",
        "Normal heart.",
    ),
    distractors=(
        "The bones are intact.",
        "Mild degenerative changes of the spine are seen.",
        "The trachea is in the middle.",
        "The aorta is tortuous.",
        "No acute fracture.",
        "The upper abdomen is unremarkable.",
        "The patient is slightly rotated.",
        "Soft tissues of the chest wall are normal.",
        "Compared with ___ there is no other change.",
        "There are calcifications of the aorta.",
        "The osseous structures are unremarkable.",
        "Ribs are intact on both sides.",
        "No free air is noted below the diaphragm.",
        "The mediastinum is within normal limits.",
    ),
    nothing_acute=(
        "No acute cardiopulmonary process.",
        "No acute disease.",
        "Normal chest radiograph.",
        "There is no acute process in the chest.",
        "The lungs are clear.",
    ),
    place={
        "upper": (
            "in the {side} upper lobe",
            "in the {side} upper zone",
            "at the {side} apex",
            "in the upper part of the {side} lung",
            "at the apex of the {side} lung",
        ),
        "middle": (
            "in the {side} mid zone",
            "in the {side} middle zone",
            "in the middle of the {side} lung",
            "in the mid part of the {side} lung",
        ),
        "lower": (
            "in the {side} lower lobe",
            "in the {side} lower zone",
            "at the {side} base",
            "at the base of the {side} lung",
            "in the lower part of the {side} lung",
        ),
        "pleura": (
            "on the {side}",
            "in the {side} pleural space",
            "in the {side} hemithorax",
            "on the {side} side of the chest",
        ),
    },
    place_both={
        "upper": ("in both upper lobes", "in both upper zones", "in the upper part of both lungs"),
        "middle": ("in both mid zones", "in both middle zones", "in the middle of both lungs"),
        "lower": ("in both lower lobes", "in both lower zones", "at both bases", "in the lower part of both lungs"),
        "pleura": ("on both sides", "in both pleural spaces"),
        "hila": ("in both perihilar regions", "around both hila", "in the perihilar part of both lungs"),
    },
    lobe={
        "upper": ("{side} upper lobe", "{side} upper zone", "{side} apical"),
        "middle": ("{side} mid zone", "{side} middle zone"),
        "lower": ("{side} lower lobe", "{side} lower zone", "{side} basal"),
    },
)

VALIDATE = Bank(
    positive={
        "Pneumonia": (
            "{grade} {noun} is present {place}.",
            "{noun} is seen {place}, concerning for pneumonia.",
            "There is a {grade} {lobe} {noun}.",
        ),
        "Pleural Effusion": (
            "A {grade} {side} {noun} is present.",
            "{noun} of {grade} size {place}.",
            "There is {noun} of {grade} size {place}.",
        ),
        "Pneumothorax": (
            "{side} pneumothorax of {grade} size.",
            "There is a {grade} pneumothorax {place}.",
            "A {side} pneumothorax is present.",
        ),
        "Cardiomegaly": (
            "{grade} cardiomegaly is present.",
            "Heart size is {gradely} enlarged.",
            "The cardiac silhouette is {gradely} increased.",
        ),
        "Edema": (
            "{grade} {noun} is present.",
            "There is {noun} {place}, {grade}.",
            "{grade} perihilar haze of {noun}.",
        ),
        "Atelectasis": (
            "{grade} {noun} is present {place}.",
            "There is {lobe} {noun}.",
            "{grade} bands of {noun} {place}.",
        ),
        "Lung Lesion": (
            "A {size} mm {noun} is present {place}.",
            "There is a {grade} {lobe} {noun}.",
            "{noun} of {size} mm {place}.",
        ),
        "Support Devices": ("A {device} is present.", "There is a {device} in place.", "{device} is seen in position."),
    },
    negative={
        1: ("No {a} is seen.", "No evidence of {a}."),
        2: ("There is no evidence of {a} or {b}.", "No {a} and no {b}."),
        3: ("There is no {a}, {b} or {c}.",),
    },
    normal_heart=("Heart is normal in size.", "Normal cardiac silhouette."),
    distractors=(
        "The osseous structures are intact.",
        "The aorta is unremarkable.",
        "No acute fracture is seen.",
        "The spine is unremarkable.",
        "Soft tissues are within normal limits.",
    ),
    nothing_acute=("No acute process in the chest.", "There is no acute disease.", "Clear lungs."),
    place={
        "upper": ("in the upper zone of the {side} lung", "at the {side} lung apex"),
        "middle": ("in the mid zone of the {side} lung", "in the middle part of the {side} lung"),
        "lower": ("in the lower zone of the {side} lung", "at the {side} lung base"),
        "pleura": ("in the {side} side of the chest", "in the pleural space of the {side} hemithorax"),
    },
    place_both={
        "upper": ("in the upper zones of both lungs",),
        "middle": ("in the mid zones of both lungs",),
        "lower": ("in the lower zones of both lungs", "at both lung bases"),
        "pleura": ("in the pleural space on both sides",),
        "hila": ("in the perihilar regions of both lungs",),
    },
    lobe={
        "upper": ("{side} upper lung",),
        "middle": ("{side} middle lung",),
        "lower": ("{side} lower lung",),
    },
)

TEST = Bank(
    positive={
        "Pneumonia": (
            "{grade} {noun} is noted {place}.",
            "There is {grade} {lobe} {noun}, concerning for pneumonia.",
            "{grade} {noun} {place} consistent with pneumonia.",
            "Pneumonia is present {place}.",
        ),
        "Pleural Effusion": (
            "{side} {noun} of {grade} size.",
            "A {grade} {noun} is present {place}.",
            "{grade} {side} {noun} is noted.",
            "There is {grade} fluid {place}, consistent with effusion.",
        ),
        "Pneumothorax": (
            "A {grade} pneumothorax is present {place}.",
            "{grade} {side} pneumothorax is noted.",
            "There is a pleural line {place}, consistent with pneumothorax.",
            "{side} apical pneumothorax of {grade} size.",
        ),
        "Cardiomegaly": (
            "{grade} cardiomegaly is noted.",
            "{gradely} enlarged cardiac silhouette.",
            "There is {grade} enlargement of the heart.",
            "The size of the heart is {gradely} increased.",
        ),
        "Edema": (
            "{grade} {noun} is noted {place}.",
            "There is {grade} perihilar {noun}.",
            "{grade} {noun} with haze {place}.",
            "{noun} is {grade} and seen {place}.",
        ),
        "Atelectasis": (
            "{grade} {noun} is noted {place}.",
            "There is {grade} {lobe} {noun}.",
            "{lobe} {noun} is seen, {grade}.",
            "Bands of {grade} {noun} {place}.",
        ),
        "Lung Lesion": (
            "{noun} measuring {size} mm {place}.",
            "There is a {size} mm {lobe} {noun}.",
            "A {noun} is noted {place}, {size} mm in size.",
            "{grade} {noun} is seen {place}.",
        ),
        "Support Devices": (
            "A {device} is noted.",
            "{device} is present in standard position.",
            "There is a {device} unchanged in position.",
        ),
    },
    negative={
        1: ("No {a} is present.", "There is no {a} seen."),
        2: ("There is no {a} and no {b}.", "No evidence of {a} or {b} is seen."),
        3: ("No evidence of {a}, {b} or {c}.", "There is no evidence of {a}, {b} or {c}."),
    },
    normal_heart=("The size of the heart is normal.", "The cardiac silhouette is normal in size."),
    distractors=(
        "The bones are unremarkable.",
        "Degenerative changes of the spine are noted.",
        "The aorta is within normal limits.",
        "There is no acute fracture.",
        "The abdomen is unremarkable.",
        "The mediastinum is normal.",
    ),
    nothing_acute=(
        "No acute disease in the chest.",
        "There is no acute cardiopulmonary disease.",
        "The chest radiograph is normal.",
    ),
    place={
        "upper": ("in the upper {side} lung", "in the upper zone on the {side}", "in the apex of the {side} lung"),
        "middle": ("in the middle {side} lung", "in the mid zone on the {side}"),
        "lower": ("in the lower {side} lung", "in the lower zone on the {side}", "in the base of the {side} lung"),
        "pleura": ("in the pleural space on the {side}", "in the {side} chest", "on the {side} side"),
    },
    place_both={
        "upper": ("in the upper lungs on both sides", "in the upper lobe on both sides"),
        "middle": ("in the middle zone on both sides",),
        "lower": ("in the lower lungs on both sides", "in the lower lobe on both sides"),
        "pleura": ("in the pleural spaces on both sides", "in both sides of the chest"),
        "hila": ("in the perihilar regions on both sides", "around the hila on both sides"),
    },
    lobe={
        "upper": ("upper {side} lung",),
        "middle": ("mid {side} lung",),
        "lower": ("lower {side} lung",),
    },
)

BANKS: dict[str, Bank] = {"train": TRAIN, "validate": VALIDATE, "test": TEST}
