"""Which machines a table may lead to."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp")

from yarl import URL

from impresa.data.fetch.addresses import check_literal, is_public, parsed
from impresa.data.fetch.failure import Failure


@pytest.mark.parametrize("host", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public(host: str) -> None:
    assert is_public(host)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        *("2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "::127.0.0.1"),
        *("127.1", "2130706433", "0x7f000001", "017700000001", "localhost", "", "8.8.8"),
    ],
)
def test_private(host: str) -> None:
    assert not is_public(host)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "017700000001", "[::1]", "127.0.0.1.", "0"])
def test_numbers_in_any_form_are_refused(host: str) -> None:
    with pytest.raises(Failure, match="private address"):
        check_literal(parsed(f"http://{host}/x.png"))


def test_names_are_left_to_the_resolver() -> None:
    for host in ("example.org", "4chan.example", "0xabc.example", "1.2.example"):
        check_literal(parsed(f"http://{host}/x.png"))


def test_addresses_are_sent_as_they_are() -> None:
    for text in ("https://a.b/c%2Fd%20e?sig=a%2Bb%3D&x=~", "HTTP://a.b/x.png", "http://user:pw@a.b:8080/x"):
        assert parsed(text).raw_path_qs == URL(text, encoded=True).raw_path_qs
    assert parsed("https://a.b/ä b.png").raw_path_qs == "/%C3%A4%20b.png"
    assert str(parsed("../d.png?x", URL("https://a.b/c/e/f"))) == "https://a.b/c/d.png?x"
    assert str(parsed("//c.d/x", URL("https://a.b/c"))) == "https://c.d/x"


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b", "x.png", "/x.png", "ftp://a.b/x", "file:///etc/passwd", "data:image/png;base64,AAAA", "http://"),
        *(
            "http:///x",
            "http://a.b:99999/",
            "http://a.b:x/",
            "http://[::1/",
            "javascript:x",
            "http://a.b/" + "x" * 9000,
        ),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Failure, match="no http address"):
        parsed(text)
