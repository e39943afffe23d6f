"""Single words that all splits share: severities, names of findings present and absent, devices. {side} is left or right."""

Phrases = tuple[str, ...]

GRADES: dict[str, tuple[Phrases, Phrases, Phrases]] = {
    "Pneumonia": (("faint", "subtle", "hazy"), ("moderate", "patchy"), ("dense", "extensive")),
    "Pleural Effusion": (("small", "trace"), ("moderate",), ("large",)),
    "Pneumothorax": (("small", "tiny"), ("moderate",), ("large",)),
    "Cardiomegaly": (("mild", "slight"), ("moderate",), ("severe", "marked")),
    "Edema": (("mild", "slight"), ("moderate",), ("severe", "marked")),
    "Atelectasis": (("mild", "minimal"), ("moderate",), ("marked", "extensive")),
    "Lung Lesion": (("small",), ("moderate",), ("large",)),
    "Support Devices": (("",), ("",), ("",)),
}

NOUNS: dict[str, Phrases] = {
    "Pneumonia": ("opacity", "consolidation", "infiltrate", "airspace opacity"),
    "Pleural Effusion": ("pleural effusion", "effusion", "pleural fluid collection"),
    "Pneumothorax": ("pneumothorax",),
    "Cardiomegaly": ("cardiomegaly",),
    "Edema": ("pulmonary edema", "edema"),
    "Atelectasis": ("atelectasis", "linear atelectasis", "plate like atelectasis"),
    "Lung Lesion": ("nodule", "pulmonary nodule", "round nodule"),
    "Support Devices": ("support device",),
}

ABSENT: dict[str, Phrases] = {
    "Pneumonia": ("pneumonia", "consolidation", "focal opacity"),
    "Pleural Effusion": ("pleural effusion", "effusion"),
    "Pneumothorax": ("pneumothorax",),
    "Cardiomegaly": ("cardiomegaly",),
    "Edema": ("pulmonary edema", "edema"),
    "Atelectasis": ("atelectasis",),
    "Lung Lesion": ("nodule", "pulmonary nodule"),
    "Support Devices": ("support device",),
}

DEVICES: dict[str, Phrases] = {
    "endotracheal tube": ("endotracheal tube",),
    "pacemaker": ("{side} pacemaker", "{side} sided pacemaker"),
    "picc line": ("{side} PICC line", "{side} sided PICC line"),
    "chest tube": ("{side} chest tube", "{side} sided chest tube"),
    "sternotomy wires": ("row of sternotomy wires", "set of sternotomy wires"),
}
