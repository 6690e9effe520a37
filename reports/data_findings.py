"""What to do about each problem that an audit finds, in a sentence."""

from __future__ import annotations

# One for each key of `LOSSES` and `DOUBTS` in input_pipeline/findings.py.
REMEDIES = {
    "bad training image": "Save it anew or delete its row; until then training "
    "leaves it out.",
    "bad test image": "Fetch it again; until then its row gets the class "
    "shares of training, or no mask.",
    "class too small": "Add images of the class, join it with another, or "
    "delete its rows.",
    "no decoder": "Save it as JPEG or PNG.",
    "no row": "Add a row for it to the csv, or delete the file.",
    "no class": "Move it into the folder of its class.",
    "no mask": "Draw its mask, or delete the image.",
    "no photo": "Fetch its image, or delete the mask.",
    "two files": "Delete or rename one of the two.",
    "bad mask": "Save the mask anew as a PNG.",
    "mask size": "Save the mask in the size of its image.",
    "mask values": "Give the values to classes in the class list, or correct "
    "the mask.",
    "no image": "Nothing; delete it if it has no use.",
    "copy": "Delete one of the two: it counts twice.",
    "copy across splits": "Delete it from training: what validates or is "
    "predicted must not be learned.",
    "near copy": "Look at both; if they show the same, delete one, or give "
    "both one group (data.group_column), so that no fold parts them.",
    "near copy across splits": "Look at both; if they show the same, delete "
    "the one to train on.",
    "no pair": "Move it into the folder of its pair, or delete it.",
    "half pair": "Leave exactly two pictures in the folder of the pair.",
    "two identities": "Look at it, and delete it from the wrong identity.",
    "two flags": "Look whether it is forged, and correct the wrong flag.",
    "impulse noise": "Train and predict with "
    "--config.data.clean_impulses=True.",
    "two labels": "Look at it, and delete the wrong row.",
    "two masks": "Look at both masks, and delete the wrong one.",
    "unusual size": "Look whether it belongs to the data; it is resized like "
    "all others.",
    "long and narrow": "Cut it where the object is: a crop shows less than a "
    "quarter.",
    "sizes differ": "See that both come from the same source: a model is "
    "scored on what it has not learned.",
    "class misses folds": "Add images, or set data.folds lower.",
    "class in no mask": "Draw it in a mask, or take it off the class list.",
    "class not validated": "Move an image that holds it to validation.",
    "empty mask": "See whether there is really nothing to mark.",
    "one-class mask": "See whether all of the image is really of one class.",
    "turned photo": "Turn the mask like the photo, or save the photo upright.",
    "transparent": "Save it without transparency, or delete it.",
    "labels alike": "Write both labels alike.",
    "missing label": "Delete the rows, or give them their label.",
    "repaired": "Fetch it again if it can be had whole.",
}
