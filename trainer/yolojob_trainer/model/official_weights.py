"""Weights that Ultralytics publishes: their names, addresses and checksums."""

from __future__ import annotations

import difflib
import re

from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from yolojob.api import constants
from yolojob.api.reasons import Reason
from yolojob.api.spec import OFFICIAL_WEIGHTS
from yolojob.api.uri import Uri
from yolojob_trainer.data import mirror
from yolojob_trainer.errors import BadInput

RELEASE = "v8.4.0"
"""The release that Ultralytics 8.4 itself fetches the files from."""
NAMES = frozenset(name for name in GITHUB_ASSETS_NAMES if re.fullmatch(OFFICIAL_WEIGHTS, name))
SHA256 = {
    "yolo11l-cls.pt": "6b56513a5d8bdae6b8f0a36dacaf01b26d5a522ba1b34197c3bac9fa6463366c",
    "yolo11l-obb.pt": "92dcf9face59a821cd4ee93828f4c19b51f6dee9b842b23c1dacab7aa89039fc",
    "yolo11l-seg.pt": "cabe90049795dfc9a370b7934d6dec7f6b9e44a20e573b0ff81b7e205512c872",
    "yolo11l.pt": "9ebd0e09d59811db4b1d61e2bc6730649608b1ac47f8dd01e2da6bca7c20023f",
    "yolo11m-obb.pt": "41832a4349c08190335bbc11a8e64726750702eb49cf09abb262bc394a13498c",
    "yolo11m-pose.pt": "29b17eaf3a3117cbea906090dbedf9159f7c6a49db58ec8b99ed2dfde1cf6eb2",
    "yolo11m-seg.pt": "eb9a06f63e2206c35d68d839b08c362429ebecf933ad54c1ad68b2fd001c17cf",
    "yolo11m.pt": "d5ffc1a674953a08e11a8d21e022781b1b23a19b730afc309290bd9fb5305b95",
    "yolo11n-cls.pt": "c62d41bf9625777760018bf914d2e6cd472420ccd01706d97a61cb6c82502bd7",
    "yolo11n-obb.pt": "b62898ebf38940ca4df323863e45ee9d84a1a46d5d11ebdde529fb33aa9f3a32",
    "yolo11n-pose.pt": "869e83fcdffdc7371fa4e34cd8e51c838cc729571d1635e5141e3075e9319dc0",
    "yolo11n-seg.pt": "55ed65c56c91713d23e8402371c6c49a6fd84f257f7dce452e8d70e41dcbe152",
    "yolo11n.pt": "0ebbc80d4a7680d14987a577cd21342b65ecfd94632bd9a8da63ae6417644ee1",
    "yolo11s-cls.pt": "e2b605d1c8c212b434a75a32759a6f7adf1d2b29c35f76bdccd4c794cb653cf2",
    "yolo11s-obb.pt": "43fa63102922e0701501241b307420d24fc55e080816888b18bf8c6f96b1a45a",
    "yolo11s-pose.pt": "1060bda4a27012060eca246f9b2adeea22eabb045a1e58f8d229be29b7ebc2ba",
    "yolo11s-seg.pt": "1caa81c0195412efa411b632bcfb8c184939dddb6ae41f6a80c41b211ff257c3",
    "yolo11s.pt": "85a76fe86dd8afe384648546b56a7a78580c7cb7b404fc595f97969322d502d5",
    "yolo11x-obb.pt": "1461342db1ce0f35c755278303febd1174604ccc375110076fa0ac155231b6a0",
    "yolo11x-pose.pt": "013c43543b0751b8918486ba96e01ee44a59040683a07f96cc22bcc2cb7785f8",
    "yolo11x-seg.pt": "4e53a5f5fd3ee2ae3361c62169c6bb3ed4ae251dd0e57606e230955aa52d919c",
    "yolo11x.pt": "7bc158aa95c0ebfdd87f70f01653c1131b93e92522dbe15c228bcd742e773a24",
    "yolo12l.pt": "0babd8dc8f775bb64bb052debdff3d8b9e9b57efa9d7bfa11c84bb82c3fec336",
    "yolo12m.pt": "4c6d179786eddf6134ee469ae2f4ce04cbe4e9d1a47d6b669d9cd6b9c6c513d8",
    "yolo12n.pt": "419ff3dca37d69bacc93a50fa0c186a1c6f9fe62fae0f108b0872829689e9ca6",
    "yolo12s.pt": "e915c2c4286e3f6f8610ef106fa3f94a7b8c19b30eccede5887e22c33ef75f58",
    "yolo12x.pt": "682ce8dadee004dbe964950f1bf3eda451671815a6ed62db80b398916b9b7c6f",
    "yolo26l-cls.pt": "7a3aebb7de6f5d79f0153da627a5f68bd3d7df30e648c0fdb7f9217986ee129e",
    "yolo26l-obb.pt": "8674b0c24bf68aab5eb45009e0ac3808ce432237edf8cb5c50ae2191cb263a2b",
    "yolo26l-pose.pt": "ad33da8a29ea5772318c4c980844e47b56792d2b63815ad4e8e09c078c7d1abf",
    "yolo26l-seg.pt": "636024306410afa1732692322fba57d22ea2b1c2f07613fcee131a93d7dd380c",
    "yolo26l-sem.pt": "e4dfbd78b4bd54cbcb984aef035248af7e2559d227dc8fbf41b4f1864bc2cd21",
    "yolo26l.pt": "9fe3c544f2b19bebad7ea41e76d7ad3d88b7c2f10d11d24430c5311f6b32db26",
    "yolo26m-cls.pt": "9f6546f33a70d910e2cd6dcca5265c4617b5670b19a1f287c39e99258bade01a",
    "yolo26m-obb.pt": "23e0630f66857cf4b87535f6e705b065f1e8a33603640b8e61ace85b75312903",
    "yolo26m-pose.pt": "2fbf16367022256a226035695c5c389384c6706e8bb8ab8fcd0e7976f05443c4",
    "yolo26m-seg.pt": "16b636f04e8fb6a325b3370f22dc5e5535ff473e384f4d041fd28d788f6ee9f5",
    "yolo26m-sem.pt": "3de52574cf1b18e38d32d9e51fc57135abc4f8dda37ff13ccbf44dcf99986233",
    "yolo26m.pt": "401cea9ab23ad19246ff7744859816bc599f350e93c9dd30367b6f0a0745d0b7",
    "yolo26n-cls.pt": "0dd6f8dbc448870ac98a3cbb7156f923f7ce21fed3755d4019169ffffd279e81",
    "yolo26n-obb.pt": "6f51c78197aacda4a33be77294065a9001675fb893f56227a179731b53dbd2b0",
    "yolo26n-pose.pt": "eb3bb8268828aeaf515cec23a4bfafd793944a86fe9af94ba7823609c14522a9",
    "yolo26n-seg.pt": "361fbfabab285c3237700b6bb91d7ecfa602cd945fffda8dbe1242829b71e73f",
    "yolo26n-sem.pt": "f3f293cca764de1f93044030d8d5612de9c5ffbf37c9c8ea1b69418b73038999",
    "yolo26n.pt": "9b09cc8bf347f0fc8a5f7657480587f25db09b34bf33b0652110fb03a8ad4fef",
    "yolo26s-cls.pt": "816790029d5df3fef358f03c8144b96339d8824ee25577aeda8be0963e5c5f09",
    "yolo26s-obb.pt": "38dbd72ef6804f9bbbea7ad20f486e6ca6e093c8cd9bc857207a846565bd6e0b",
    "yolo26s-pose.pt": "a083adb42303728ae14c4bd6bd56d80da46f82fb2564dbd6f31dcc92ea321646",
    "yolo26s-seg.pt": "3da1d83e31caec96f9300eb4064f4f62882c133c7c264d63dfe61a7c197837a4",
    "yolo26s-sem.pt": "bc3e2152329831303de83e1af91d4b57d547e8794de8bb6edb1f2a622d1d5435",
    "yolo26s.pt": "646f8bc3fe0a656803d95c294f7852321748cb29d13466a1af8862e2db384a1b",
    "yolo26x-cls.pt": "ee88a0c71e9596cdfdbb71892725929cb4489b874d24fb581d20bffe79724386",
    "yolo26x-pose.pt": "08ed9e01d22a6f248b04f2f9992016aca9a32250b9ab57057d886a09d026700d",
    "yolo26x-seg.pt": "92b3de0065766a17180d6219858717dc9d03cdce8a3ca9576c97fd75aabb64f3",
    "yolo26x.pt": "9fdd44a31c504547ffb81d2c6d9e6dac3493c8eaa8b0398d3f43bae6c7003e92",
    "yolov8l-seg.pt": "ca3ec94c445aeaf79c2b57982fb451060f18a7561e2c20b4d26bb9dc1fcabf93",
    "yolov8l.pt": "64c9115303f6a25575f82200d1b22ec409fa6bd7d08d0313884fc20d919478cd",
    "yolov8m-pose.pt": "dbe539ea268db2534390942cfdf206e521f376f19e5415967a57f6a2ddfa3c90",
    "yolov8m.pt": "5d4a90cdc7a21786cc59cd19778e9eafff836df9e2da32524737c7ee6efe4fe5",
    "yolov8n-cls.pt": "11fa19f2aea79bc960d680a13f82f22105982b325eb9e17a4a5e1a9f8245980a",
    "yolov8n-obb.pt": "fa6e4cd2691f132875c143135affaa66b5d89394ebb1d07d19770a9b6382c1b8",
    "yolov8n-pose.pt": "c6fa93dd1ee4a2c18c900a45c1d864a1c6f7aba75d84f91648a30b7fb641d212",
    "yolov8n-seg.pt": "a7cd8f929e1903d78a12a48efecab430209f18dc46cb96c3599a5980c63c423c",
    "yolov8n.pt": "f59b3d833e2ff32e194b5bb8e08d211dc7c5bdf144b90d2c8412c47ccfc83b36",
    "yolov8s-pose.pt": "234314cd8baf62616791aceb9ea6ad5c19f26cf6c0d8f3a1bfce1e23b186cfb3",
    "yolov8s-seg.pt": "0bac0770b55e5eb5b76a61bc535673288dcec36c2bc0cd25ee0d584c632f3413",
    "yolov8s.pt": "1f47a78bf100391c2a140b7ac73a1caae18c32779be7d310658112f7ac9aa78a",
    "yolov8x-seg.pt": "c333d6a7aff884ec821050eacdab29871f3edd10d996cf48746a02f8e01f1b5d",
    "yolov8x.pt": "3df4ada6b4dad6d657868f2fdf7faecfb34dcfccf3a25c4b82079064718524c8",
}
"""Checksums, in hexadecimal, that at least two independent public projects state for a file of the release."""


def locate(name: str) -> Uri:
    """Return the address of official weights, with the checksum where it is known.

    It is below the URI in the environment variable YOLOJOB_WEIGHTS, if that is set.

    Args:
        name: of the file, such as yolo26n.pt.

    Raises:
        BadInput: there are no weights of this name, or the variable is not a URI.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, sorted(NAMES), n=3, cutoff=0.4)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise BadInput(
            Reason.MODEL_NOT_FOUND,
            f"spec.model.name: {name}: Ultralytics publishes no weights of this name{hint}; for a file of your own, "
            "set spec.model.weights.uri",
        )
    return mirror.address(RELEASE, name, constants.ENV_WEIGHTS, SHA256.get(name))
