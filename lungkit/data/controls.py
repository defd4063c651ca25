"""Controls: datasets of a known truth, by which it is seen whether the comparison can be believed.

A control is known by its manifest (`control`), whatever it is called: it is trained like an arm
and never competes with one.
"""

from __future__ import annotations

from lungkit.run.faults import Fault

COPY, OTHER_HALF, ORACLE, PHOTOCOPIER, SHUFFLED, COLOUR_ONLY, NOISE = (
    "copy", "other-half", "oracle", "photocopier", "shuffled", "colour-only", "noise")
# what each is, and what a sound comparison finds of it
FLAGGED = 0.95  # share of a photocopier that the audit for copies must find
EXPECTED = {
    COPY: "real's own images again: no difference from real",
    OTHER_HALF: "real images of groups that nothing else uses, as a perfect generator would draw: "
                "not lower than real",
    ORACLE: "drawn by the simulation that drew real: not lower than real",
    PHOTOCOPIER: "turned, re-stained copies of training images: flagged, 95 % of them or more",
    SHUFFLED: "real's images with labels that say nothing: at chance, and lower than real",
    COLOUR_ONLY: "the mean colour and contrast of each real image: lower than real; an arm that is "
                 "no higher has shown no morphology",
    NOISE: "images that say nothing: at chance, and lower than real",
}


def control_of(manifest: dict) -> dict | None:
    """What a manifest says of its dataset as a control, {name, expected, ...}; None of an arm.

    Raises Fault where it says so in a form that nobody can read.
    """
    control = manifest.get("control")
    if control is None:
        return None
    if not isinstance(control, dict) or not all(
            isinstance(control.get(key), str) for key in ("name", "expected")):
        raise Fault(f"the manifest of {manifest.get('name')} has a control without a name or what "
                    "is expected of it: make it again by controls_seg.py")
    return control
