"""What a list of URLs may make this machine ask: the public internet, in whatever spelling an address comes."""

import errno
import socket
from asyncio.selector_events import BaseSelectorEventLoop
from collections import Counter

import pytest

from build.web import PICTURE, Web
from controlnet.build.addresses import Refused, check_url, is_public
from controlnet.build.fetch import Bounds, Fetcher

PRIVATE = [
    # loopback, this network, private, shared, link-local (metadata of clouds), multicast, reserved, documentation
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
    "192.168.0.1", "192.168.1.254", "100.64.0.1", "100.127.255.255", "169.254.169.254", "224.0.0.1", "239.255.255.255",
    "192.88.99.1", "240.0.0.1", "255.255.255.255", "192.0.0.1",
    "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    # IPv6: unspecified, loopback, private, link-local, site-local, multicast, discard, documentation
    "[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[fc00::1]", "[fd12:3456::1]", "[fe80::1]", "[fe80::1%25eth0]", "[fec0::1]",
    "[ff02::1]", "[100::1]", "[2001:db8::1]", "[3fff::1]", "[2001:2::1]", "[4000::1]",
    # IPv4 inside IPv6: mapped, compatible, NAT64, 6to4, Teredo (server and client)
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::10.0.0.1]", "[2002:7f00:1::]", "[2002:c0a8:101::1]",
    "[2001:0:7f00:1::]", "[2001:0:808:808:0:0:80ff:fffe]",
    # one number, fewer parts, octal, hexadecimal, mixed, overflowing
    "2130706433", "3232235777", "017700000001", "0x7f000001", "127.1", "127.0.1", "10.1", "0", "0.0", "0177.0.0.1",
    "0x7f.0.0.1", "0x7f.1", "127.0.0.0x1", "010.0.0.1", "0x7F.0X0.0.1", "127.0.0.1.", "127.0.0.1..", "2130706433.",
    "256.256.256.256", "1.2.3.4.5", "08.8.8.8", "4294967297",
    # other digits and dots: full width, in circles, ideographic
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021",
    "127\uff0e0\uff0e0\uff0e1",
]  # fmt: skip
LOCAL_NAMES = ["localhost", "LOCALHOST", "localhost.", "ⓛocalhost"]
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "[2606:4700::1111]", "[2001:4860:4860::8888]",
    "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "[2002:808:808::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_in_every_spelling(host):
    for url in (f"http://{host}/a.jpg", f"https://{host}:8443/"):
        with pytest.raises(Refused):
            check_url(url)


def test_more_than_sixty_forms_are_tested():
    assert len(set(PRIVATE)) >= 60


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_are_allowed(host):
    assert is_public(host.strip("[]"))
    assert is_public(str(check_url(f"http://{host}/a.jpg").raw_host))


@pytest.mark.parametrize("host", ["example.org", "1.example", "0x7f.example.org", "bücher.example", "a-1.b"])
def test_names_are_left_to_the_resolver(host):
    assert check_url(f"https://{host}/a.jpg")


@pytest.mark.parametrize(
    "url",
    ["", " ", "a.jpg", "/a.jpg", "//example.org/a.jpg", "file:///etc/passwd", "ftp://example.org/a.jpg", "http://",
     "gopher://127.0.0.1:70/_", "javascript:alert(1)", "data:image/png;base64,AAAA", "http://user@example.org/",
     "http://:word@example.org/", "http://example.org@127.0.0.1/", "http://[::1", "http://example.org:99999/",
     "http://example.org:port/", "http:///a.jpg", "https:example.org", "http://[::g]/"],
)  # fmt: skip
def test_what_is_no_address_of_the_web_is_refused(url):
    with pytest.raises(Refused):
        check_url(url)


def test_hosts_are_allowed_with_their_port_only():
    allowed = ("127.0.0.1:8000", "pictures.internal:443")
    assert check_url("http://127.0.0.1:8000/a.jpg", allowed)
    for url in ("http://127.0.0.1:8001/", "http://127.0.0.1/", "http://127.1:8000/", "http://[::1]:8000/"):
        with pytest.raises(Refused):
            check_url(url, allowed)


@pytest.fixture
def names(monkeypatch):
    """A name server of our own: names -> what they lead to, one answer after the other; and what was asked."""
    answers: dict[str, list[list[str]]] = {}
    asked: Counter[str] = Counter()
    true = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        if host not in answers:
            return true(host, port, *arguments, **options)
        asked[host] += 1
        now = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (kinds[":" in it], socket.SOCK_STREAM, 6, "", (it, port, 0, 0) if ":" in it else (it, port)) for it in now
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers, asked


@pytest.mark.parametrize("host", [it for it in PRIVATE if it[0] == "["] + ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_names_that_lead_to_private_addresses_are_refused(names, host):
    names[0]["pictures.example"] = [["8.8.8.8", host.strip("[]").replace("%25", "%")]]  # the public one is no excuse
    [answer] = Fetcher(Bounds()).fetch(["http://pictures.example/a.jpg"])
    assert (answer.reason, answer.attempts) == ("address refused", 1)
    assert "pictures.example leads to" in answer.detail


@pytest.mark.parametrize("host", LOCAL_NAMES)
def test_local_names_are_refused_or_unknown(host):
    with Web() as web:
        [answer] = Fetcher(Bounds(attempts=1)).fetch([f"http://{host}:{web.ports['plain']}/0.jpg"])
        assert answer.reason in ("address refused", "no such host", "dns")
        assert web.asked == []


def test_a_redirect_to_a_name_that_leads_home_is_refused(names):
    names[0]["pictures.example"] = [["127.0.0.1"]]
    with Web() as web:
        url = web.redirect(f"http://pictures.example:{web.ports['second']}/0.jpg")
        [answer] = Fetcher(Bounds(allowed_hosts=(f"127.0.0.1:{web.ports['plain']}",))).fetch([url])
        assert answer.reason == "address refused"
        assert {site for site, _ in web.asked} == {"plain"}


def test_a_name_that_changes_its_mind_is_connected_to_where_it_was_judged(names, monkeypatch):
    """Public when it is judged and this machine when it is asked again: there is no again."""
    answers, asked = names
    connected = []

    async def no_network(loop, socket, address):
        connected.append(address[0])
        raise OSError(errno.ENETUNREACH, "no network in this test")

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", no_network)
    answers["pictures.example"] = [["93.184.216.34"], ["127.0.0.1"]]
    [answer] = Fetcher(Bounds(attempts=2, backoff=0)).fetch(["http://pictures.example/0.jpg"])
    assert answer.reason == "connection"
    assert set(connected) == {"93.184.216.34"}
    assert asked["pictures.example"] == 1


def test_a_name_of_ones_own_may_be_allowed(names):
    names[0]["pictures.example"] = [["127.0.0.1"]]
    with Web() as web:
        host = f"pictures.example:{web.ports['plain']}"
        [answer] = Fetcher(Bounds(allowed_hosts=(host,))).fetch([f"http://{host}/0.jpg"])
        assert answer.data == PICTURE


def test_names_that_are_not_there_and_name_servers_that_are_not_are_told_apart(monkeypatch):
    def fails(code):
        def getaddrinfo(*_, **__):
            raise socket.gaierror(code, "as told")

        return getaddrinfo

    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_NONAME))
    [gone] = Fetcher(Bounds(backoff=0)).fetch(["http://gone.example/a.jpg"])
    assert (gone.reason, gone.attempts) == ("no such host", 1)
    monkeypatch.setattr(socket, "getaddrinfo", fails(socket.EAI_AGAIN))
    [later] = Fetcher(Bounds(backoff=0, attempts=3)).fetch(["http://gone.example/a.jpg"])
    assert (later.reason, later.attempts) == ("dns", 3)


def test_a_name_too_long_for_the_internet_is_no_reason_to_ask_again():
    [answer] = Fetcher(Bounds()).fetch([f"http://{'a' * 70}.example/a.jpg"])
    assert (answer.reason, answer.attempts) == ("no valid connection", 1)
