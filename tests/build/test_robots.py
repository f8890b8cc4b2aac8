"""robots.txt as RFC 9309 has it, and headers that forbid."""

import pytest
from multidict import CIMultiDict
from yarl import URL

from controlnet.build.robots import opt_out, rules


def forbids(text, path="/a/picture.jpg"):
    return rules(text).forbid(URL("https://example.org" + path))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        # the examples of RFC 9309, 2.2.2 and 2.2.3, and of Google's description of robots.txt
        ("/", "/", True), ("/fish", "/fish.html", True), ("/fish", "/Fish.asp", False), ("/fish", "/catfish", False),
        ("/fish*", "/fish/salmon.html", True), ("/fish/", "/fish", False), ("/fish/", "/fish/?id=1", True),
        ("/*.php", "/folder/a.php?x=1", True), ("/*.php", "/windows.PHP", False), ("/*.php$", "/a.php", True),
        ("/*.php$", "/a.php?x", False), ("/*.php$", "/a.php5", False), ("/fish*.php", "/fishheads/catfish.php?x", True),
        ("/a*b*c$", "/abxcxc", True), ("/a*b*c$", "/abxcx", False), ("/a$", "/a", True), ("/a$", "/ab", False),
        ("/*a*a$", "/a", False), ("/*", "/x", True), ("/path/%7Ejoe", "/path/~joe", True),
        ("/%62%c3%bc", "/b\u00fc", True),
        ("/b\u00fc", "/b%c3%bc", True), ("/a?b=c", "/a?b=c&d", True),
    ],
)  # fmt: skip
def test_patterns_match_as_the_standard_says(pattern, path, matches):
    assert (forbids(f"User-agent: *\nDisallow: {pattern}", path) is not None) == matches


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("", False),
        ("<html>not found</html>", False),
        ("User-agent: *\nDisallow:", False),
        ("User-agent: *\nDisallow: /", True),
        ("user-AGENT : *  # all\ndisALLOW : /a # here", True),
        ("\ufeffUser-agent: *\r\nDisallow: /\r\n", True),
        ("User-agent: Googlebot\nDisallow: /", False),
        ("User-agent: googlebot\nUser-agent: ControlNet/2\nDisallow: /", True),
        ("User-agent: controlnet\nAllow: /\n\nUser-agent: *\nDisallow: /", False),
        ("User-agent: controlnet\nDisallow: /x\nUser-agent: *\nAllow: /\nUser-agent: controlnet\nDisallow: /a", True),
        ("User-agent: *\nDisallow: /a\nAllow: /a/picture", False),
        ("User-agent: *\nAllow: /a\nDisallow: /a", False),
        ("User-agent: *\nAllow: /a\nDisallow: /a/*.jpg", True),
        ("Disallow: /", False),
        ("Sitemap: /s.xml\nUser-agent: *\n\nDisallow: /", True),
        ("User-agent: controlnet-other\nDisallow: /", False),
        ("Content-Signal: ai-train=no\nUser-agent: *\nAllow: /", True),
        ("User-agent: *\nContent-signal: search = yes, AI-Train = no\nAllow: /", True),
        ("User-agent: *\nContent-Signal: search=yes, ai-train=yes", False),
        ("User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /a/ train-ai=y", False),
        ("User-agent: *\nContent-Usage: /a/ train-ai=n", True),
        ("User-agent: *\nContent-Usage: /a/ bots=y, train-ai=n", True),
        ("User-agent: *\nContent-Usage: /b/ train-ai=n", False),
    ],
)
def test_groups_and_rules_are_read_as_the_standard_says(text, forbidden):
    assert (forbids(text) is not None) == forbidden


def test_delays_are_numbers():
    assert rules("User-agent: *\nCrawl-delay: 2.5").delay == 2.5
    assert rules("User-agent: *\nCrawl-delay: soon\nCrawl-delay: -1").delay == 0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ([], None), (["all"], None), (["noai"], "noai"), (["NoImageAI, nofollow"], "noimageai"), (["none"], "none"),
        (["nofollow", "noml"], "noml"), (["googlebot: noindex"], None), (["controlnet: noindex"], "noindex"),
        (["googlebot: noindex, noai"], None), (["max-image-preview: none"], None), (["noarchive"], None),
        (["noai, max-snippet: 3"], "noai"), (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: Friday, 25-Jun-30 15:00:00 EST, noai"], "noai"), (["bot: all, controlnet: noai"], "noai"),
    ],
)  # fmt: skip
def test_tags_are_read_as_they_are_written(tags, found):
    said = opt_out(CIMultiDict([("x-robots-TAG", tag) for tag in tags]))
    assert said == (f"X-Robots-Tag: {found}" if found else None)
