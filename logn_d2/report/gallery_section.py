"""The gallery as HTML: each image before and after, with a slider between both."""

from __future__ import annotations

from collections import Counter

from .gallery import Gallery, GalleryEntry
from .html import Html, element
from .results import ClassInfo, group_title

__all__ = ["gallery_section"]


def gallery_section(gallery: Gallery, classes: ClassInfo) -> list[Html]:
    """What stands below the heading.

    Args:
        gallery (Gallery): with the names of two runs.
        classes (ClassInfo): of the data set.
    """
    before, after = gallery.names
    counts = (
        f"Of the {gallery.num_rare:,} objects of {classes.rare_classes} in "
        f"{gallery.num_images:,} images, {after} finds {gallery.gained[0]:,} that {before} misses, "
        f"and misses {gallery.lost[0]:,} that it finds; of all {gallery.num_objects:,} objects it "
        f"gains {gallery.gained[1]:,} and loses {gallery.lost[1]:,}."
    )
    if not gallery.entries:
        return [element("p", f"{counts} No image differs.")]
    counts += " Below are those with the largest gains and the largest losses, not typical ones."
    rule = (
        "Calibrations move all scores, so no common threshold would be fair: each picture shows "
        "the n best detections, n being the number of annotated objects, and where several overlap "
        "only the best. Found means: right class and an IoU of at least 0.5."
    )
    key = element(
        "ul",
        _key("outline:2px dashed #fff", "annotated object"),
        _key("outline-color:#56b4e9", f"✓ found, ★ found and of {classes.rare_classes}"),
        _key("outline-color:#e69f00", "✗ no annotated object of this class there"),
        class_="key",
    )
    entries = (_entry(entry, classes, before, after) for entry in gallery.entries)
    pictures = element("div", *entries, class_="gallery")
    return [element("p", counts), element("p", rule, class_="soft"), key, pictures]


def _key(style: str, text: str) -> Html:
    return element("li", element("span", class_="swatch", style=style), text)


def _entry(entry: GalleryEntry, classes: ClassInfo, before: str, after: str) -> Html:
    said = []
    for name, found in ((after, entry.gained), (before, entry.lost)):
        if found:
            notes = (_class_note(classes, *item) for item in Counter(found).items())
            said.append(f"Found only by {name}: {', '.join(notes)}.")
    gain = len(entry.gained) - len(entry.lost)
    rare_gain = sum(classes.is_rare[list(entry.gained)]) - sum(classes.is_rare[list(entry.lost)])
    verdict = "Gain" if (rare_gain, gain) > (0, 0) else "Loss"
    caption = [element("strong", verdict), f", image {entry.image_id}. {' '.join(said)}"]
    sides = [
        element(
            "div",
            element("img", src=source, alt=f"Image {entry.image_id}, {name}. {' '.join(said)}"),
            element("span", name),
            class_=side,
        )
        for side, name, source in (("before", before, entry.before), ("after", after, entry.after))
    ]
    return element("figure", element("div", *sides, class_="pair"), element("figcaption", *caption))


def _class_note(classes: ClassInfo, index: int, objects: int) -> str:
    group, count = group_title(classes.groups[index]), int(classes.image_count[index])
    times = f"{objects} × " if objects > 1 else ""
    return f"{times}{classes.labels[index]} ({group}, {count:,} training image{'s' * (count != 1)})"
