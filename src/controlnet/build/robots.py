"""What sites say about being read by programs: robots.txt (RFC 9309) and X-Robots-Tag."""

from collections.abc import Iterable
from urllib.robotparser import RobotFileParser

AGENT = "controlnet"  # the name that robots.txt may address
OPT_OUTS = ("noai", "noimageai", "noml", "noindex", "noimageindex", "none")
LARGEST = 500 * 1024  # bytes of robots.txt that are read, as RFC 9309 asks for at least
REFUSES_ALL = "User-agent: *\nDisallow: /"  # for a site whose robots.txt cannot be had now


def rules(text: str) -> RobotFileParser:
    parser = RobotFileParser()
    parser.parse(text.splitlines())
    return parser


def opt_out(tags: Iterable[str]) -> str | None:
    """The X-Robots-Tag that forbids to use a picture, if one of the header's values does: for all, or for us."""
    for tag in tags:
        agent, colon, said = tag.partition(":")
        for_us = not colon or agent.strip().lower() == AGENT
        words = {word.strip().lower() for word in (said if colon else tag).split(",")}
        if for_us and (found := next((word for word in OPT_OUTS if word in words), None)):
            return found
    return None
