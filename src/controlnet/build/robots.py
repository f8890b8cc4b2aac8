"""What sites say about being read by programs: robots.txt (RFC 9309), X-Robots-Tag, and for training Content-Signal
(contentsignals.org) and Content-Usage (draft-ietf-aipref-attach), in robots.txt as well as in headers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_letters, digits
from urllib.parse import quote

from multidict import MultiMapping
from yarl import URL

AGENT = "controlnet"  # the name that robots.txt may address
OPT_OUTS = ("noai", "noimageai", "noml", "noindex", "noimageindex", "none")
LARGEST = 500 * 1024  # bytes of robots.txt that are read, as RFC 9309 asks for at least
# how training is spoken of: the directive and header -> the word that forbids it
USES = {"content-signal": "ai-train=no", "content-usage": "train-ai=n"}
TAG_AGENT = re.compile(r"[a-z_-]+")  # product tokens of RFC 9309; a date after `unavailable_after:` is none
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # tags that have a value
ESCAPED = re.compile("%[0-9a-fA-F]{2}")
UNRESERVED = frozenset(ascii_letters + digits + "-._~")  # RFC 3986, 2.3
KEPT = "%/?&=+:@!$'()*,;~-._"  # in paths that are compared: all that need no other spelling


@dataclass
class Rules:
    """What one group of robots.txt says."""

    paths: list[tuple[str, bool]] = field(default_factory=list)
    """Pattern, and whether it allows."""
    uses: list[tuple[str, bool]] = field(default_factory=list)
    """Pattern, and whether training is allowed."""
    delay: float = 0.0
    """Seconds between requests."""

    def forbid(self, url: URL) -> str | None:
        """Which rule of the site forbids this address; None if none does."""
        path = _spelled(url.raw_path_qs)
        if not _longest(self.paths, path):
            return "robots.txt"
        return None if _longest(self.uses, path) else "robots.txt: no training"


NO_RULES = Rules()


def rules(text: str) -> Rules:
    """What a site's robots.txt says to us: its groups for our name, or else those for all."""
    groups = _groups(text)
    said = groups.get(AGENT, groups.get("*", []))
    found = Rules()
    for name, value in said:
        if name in ("allow", "disallow") and value:
            found.paths.append((_spelled(value), name == "allow"))
        elif name == "crawl-delay":
            found.delay = max(found.delay, _seconds(value))
        elif name in USES:
            path, _, words = value.partition(" ") if value.startswith("/") else ("/", "", value)
            found.uses.append((_spelled(path.strip()), USES[name] not in _words(words)))
    return found


def _groups(text: str) -> Mapping[str, list[tuple[str, str]]]:
    """The rules for each agent, in lower case; several groups for one agent are one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    named: list[str] = []
    is_naming = False
    for line in text.lstrip("\ufeff").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            named = [*(named if is_naming else []), value.partition("/")[0].strip().lower()]
            groups.setdefault(named[-1], [])
        elif name in USES and not named:
            groups.setdefault("*", []).append((name, value))  # at the head of the file it is said to all
        for agent in named if name != "user-agent" else ():
            groups[agent].append((name, value))
        is_naming = name == "user-agent"
    return groups


def _longest(patterns: Sequence[tuple[str, bool]], path: str) -> bool:
    """What the most specific pattern says, the kinder one of two; True where none matches (RFC 9309, 2.2.2)."""
    matching = [(len(pattern), allows) for pattern, allows in patterns if _matches(pattern, path)]
    return max(matching, default=(0, True))[1]


def _matches(pattern: str, path: str) -> bool:
    """`*` is any text, `$` at the end is the end."""
    text, ends = (pattern[:-1], True) if pattern.endswith("$") else (pattern, False)
    first, *others = text.split("*")
    if not path.startswith(first):
        return False
    place = len(first)
    for other in others[:-1] if ends and others else others:
        place = path.find(other, place)
        if place < 0:
            return False
        place += len(other)
    return not ends or (path.endswith(others[-1]) and len(path) - len(others[-1]) >= place if others else path == first)


def _spelled(path: str) -> str:
    """One spelling for equal paths (RFC 3986, 6.2.2): what needs no percent sign has none, others are in capitals."""
    return ESCAPED.sub(lambda found: _plain(found[0]), quote(path, safe=KEPT))


def _plain(escaped: str) -> str:
    return text if (text := chr(int(escaped[1:], 16))) in UNRESERVED else escaped.upper()


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d*)?", text) else 0.0


def _words(text: str) -> set[str]:
    return {re.sub(r"\s", "", word).lower() for word in text.split(",")}


def opt_out(headers: MultiMapping[str]) -> str | None:
    """The header by which a site forbids to use a picture, with the word that does; for all, or for us."""
    if tag := _tagged(headers.getall("X-Robots-Tag", [])):
        return f"X-Robots-Tag: {tag}"
    said = ((name, word) for name, word in USES.items() if any(word in _words(it) for it in headers.getall(name, [])))
    return next((f"{name.title()}: {word}" for name, word in said), None)


def _tagged(tags: Iterable[str]) -> str | None:
    for tag in tags:
        for_us = True
        for part in tag.lower().split(","):
            name, colon, said = (it.strip() for it in part.partition(":"))
            if colon and name not in VALUED and TAG_AGENT.fullmatch(name):
                for_us, name = name == AGENT, said
            if for_us and name in OPT_OUTS:
                return name
    return None
