"""Signed releases, and stores in which an attacker has rewritten every hash.
docs/guides/security.md."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from support import tiny

from medray.cli import main
from medray.errors import ArtifactError, ConfigError
from medray.registry.registry import Registry
from medray.serving import app
from medray.serving.follow import Follower
from medray.serving.replica import ReleaseReplica
from medray.serving.schemas import AppOptions
from medray.storage import checkpoint, files


def write_key(
    folder: Path, name: str, key: Any = None, password: bytes | None = None
) -> tuple[Path, Path]:
    """A private and a public key in PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture(scope="module")
def whole(keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cancer@1 is signed and cancer@2 is not; both are of one checkpoint."""
    root = tmp_path_factory.mktemp("signed") / "store"
    command = [
        "publish",
        str(tiny.checkpoint()),
        "cancer",
        "--alias",
        "best",
        "--storage-path",
        str(root),
    ]
    assert main([*command, "--sign", str(keys[0])]) == 0
    assert Registry(str(root)).publish(tiny.checkpoint(), "cancer").reference == "cancer@2"
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(copytree(whole, tmp_path / "store"))


def test_verify_takes_what_its_key_signed_and_refuses_other_keys_and_unsigned_versions(
    root: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, other = write_key(tmp_path, "other")
    for reference, key, refusal in (
        ("cancer@best", keys[1], None),
        ("cancer@2", keys[1], "cancer@2: is not signed by the key of"),
        ("cancer@best", other, "cancer@1: is not signed by the key of"),
    ):
        status = main(
            ["verify", reference, "--require-signature", str(key), "--storage-path", str(root)]
        )
        err = capsys.readouterr().err
        assert status == (refusal is not None)
        assert refusal is None or refusal in err


def _rewrite_everything(root: Path) -> None:
    """Attack as a writer of the store who knows medray: afterwards every hash agrees."""
    (folder,) = (root / "checkpoints").iterdir()
    weights = bytearray((folder / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 0x80
    (folder / "adapter_model.safetensors").write_bytes(weights)
    manifest = json.loads((folder / checkpoint.MANIFEST).read_bytes())
    manifest["files"] = files.hash_folder(folder, leave_out=[checkpoint.MANIFEST])
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    content_id = checkpoint.content_id(folder)
    folder.rename(folder.with_name(content_id))
    _edit(root, {"content_id": content_id})


def _edit(root: Path, changes: dict[str, Any]) -> None:
    record = root / "releases" / "cancer" / "1.json"
    record.write_text(json.dumps(json.loads(record.read_bytes()) | changes))
    Registry(str(root)).point("cancer", "best", 1)


def _take_from(root: Path, version: int) -> None:
    """The unsigned version's bytes in place of the signed one's."""
    record = json.loads((root / "releases" / "cancer" / f"{version}.json").read_bytes()) | {
        "version": 1
    }
    (root / "releases" / "cancer" / "1.json").write_text(json.dumps(record, indent=1) + " ")
    Registry(str(root)).point("cancer", "best", 1)


def _junk(content: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (signature,) = (root / "releases" / "cancer").glob("1.*.sig")
        signature.write_bytes(content)

    return write


def _sign_other_content(root: Path) -> None:
    """The signature of another version, by the same key."""
    (signature,) = (root / "releases" / "cancer").glob("1.*.sig")
    signature.rename(signature.with_name(signature.name.replace("1.", "2.", 1)))
    Registry(str(root)).point("cancer", "best", 2)


@pytest.mark.parametrize(
    "attack",
    [
        _rewrite_everything,
        lambda root: _edit(root, {"notes": "other"}),
        lambda root: _edit(root, {"calibration": {"temperature": 3.0}}),
        lambda root: _take_from(root, 2),
        _junk(b""),
        _junk(b"[" * 100_000),
        _junk(b"{}"),
        _junk(b"\xff\xfe\x00"),
        _sign_other_content,
    ],
    ids=[
        "every hash",
        "notes",
        "temperature",
        "another record",
        "empty",
        "deep",
        "object",
        "binary",
        "another signature",
    ],
)
def test_a_writer_of_the_store_without_the_key_gets_nothing_past_a_signature(
    root: Path, keys: tuple[Path, Path], attack: Callable[[Path], None]
) -> None:
    Registry(str(root)).resolve("cancer@best").check_signature(keys[1])
    attack(root)
    with pytest.raises(ArtifactError, match="its signature is not one of this record") as refusal:
        Registry(str(root)).resolve("cancer@best").check_signature(keys[1])
    assert "\n" not in str(refusal.value)


def test_a_replica_keeps_the_signed_version_and_reports_why_until_the_next_one_is_signed(
    root: Path, keys: tuple[Path, Path]
) -> None:
    registry = Registry(str(root))
    options = AppOptions(
        releases=("cancer@best",), storage_path=str(root), require_signature=str(keys[1])
    )
    opened_releases = []

    class FakeVllmModels:
        def open(self, release: Any) -> Any:
            opened_releases.append(release.reference)
            version = release.record.version
            return SimpleNamespace(version=version, release=SimpleNamespace(version=version))

    replica: Any = SimpleNamespace(
        options=options, vllm_models=FakeVllmModels(), gauge=SimpleNamespace(set=lambda *of: None)
    )
    following = Follower(
        registry,
        "cancer@best",
        lambda release: ReleaseReplica.open_release(replica, "cancer@best", release),
        every_s=1,
        retry_s=0,
    )
    registry.point("cancer", "best", 2)
    following.step()
    assert (following.model.version, following.error_version, opened_releases) == (
        1,
        2,
        ["cancer@1"],
    )
    assert "cancer@2: is not signed by the key of" in str(following.error)
    registry.sign(registry.resolve("cancer@2"), keys[0])
    following.step()
    assert (following.model.version, following.error, opened_releases) == (
        2,
        None,
        ["cancer@1", "cancer@2"],
    )


def test_an_application_is_not_started_with_an_unsigned_release(
    root: Path, keys: tuple[Path, Path]
) -> None:
    app.build(
        AppOptions(
            releases=("cancer@best",), storage_path=str(root), require_signature=str(keys[1])
        )
    )
    with pytest.raises(ArtifactError, match="cancer@2: is not signed"):
        app.build(
            AppOptions(
                releases=("cancer@best", "cancer@2"),
                storage_path=str(root),
                require_signature=str(keys[1]),
            )
        )


def test_serve_passes_the_key_on_as_a_path_that_every_process_can_open(
    root: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options_of_calls: list[AppOptions] = []

    def serving(options: AppOptions, **more: Any) -> Any:
        options_of_calls.append(options)
        raise ConfigError("seen")

    monkeypatch.setattr(app, "serving", serving)
    monkeypatch.chdir(keys[1].parent)
    assert (
        main(
            [
                "serve",
                "cancer@best",
                "--require-signature",
                keys[1].name,
                "--storage-path",
                str(root),
            ]
        )
        == 1
    )
    assert [options.require_signature for options in options_of_calls] == [str(keys[1])]


def test_signing_again_keeps_a_valid_signature_and_replaces_a_broken_one(
    root: Path, keys: tuple[Path, Path]
) -> None:
    registry = Registry(str(root))
    (signature,) = (root / "releases" / "cancer").glob("1.*.sig")
    before = signature.read_bytes()
    registry.sign(registry.resolve("cancer@1"), keys[0])
    assert signature.read_bytes() == before
    signature.write_bytes(b"{")
    registry.sign(registry.resolve("cancer@1"), keys[0])
    registry.resolve("cancer@1").check_signature(keys[1])


def test_a_key_of_another_kind_is_one_sentence(
    root: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    registry = Registry(str(root))
    release = registry.resolve("cancer@1")
    rsa_private, rsa_public = write_key(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    locked_key, _ = write_key(tmp_path, "locked", password=b"secret")
    curve, curve_public = write_key(tmp_path, "curve", ec.generate_private_key(ec.SECP256K1()))
    (tmp_path / "empty").write_bytes(b"")
    for private in (
        rsa_private,
        locked_key,
        curve,
        keys[1],
        tmp_path / "empty",
        tmp_path / "none",
        tmp_path,
    ):
        with pytest.raises(ConfigError, match="give an elliptic-curve private key"):
            registry.sign(release, private)
    command = [
        "publish",
        str(tiny.checkpoint()),
        "cancer",
        "--alias",
        "best",
        "--storage-path",
        str(root),
    ]
    assert main([*command, "--sign", str(rsa_private)]) == 1
    assert registry.versions("cancer") == [1, 2]  # nothing was published
    for public in (keys[0], tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ConfigError, match="give an elliptic-curve public key"):
            release.check_signature(public)
    for public in (rsa_public, curve_public):
        with pytest.raises(
            (ConfigError, ArtifactError), match=r"is not signed|give an elliptic-curve public key"
        ):
            release.check_signature(public)


def test_signatures_of_a_bucket_are_checked_as_those_of_a_folder(
    uri: str, keys: tuple[Path, Path]
) -> None:
    registry = Registry(uri)
    release = registry.publish(tiny.checkpoint(), "cancer")
    with pytest.raises(ArtifactError, match="is not signed"):
        release.check_signature(keys[1])
    registry.sign(release, keys[0])
    registry.point("cancer", "best", 1)
    assert (registry.versions("cancer"), tiny.aliases(registry, "cancer")) == ([1], {"best": 1})
    registry.resolve("cancer@best").check_signature(keys[1])


def test_a_missing_library_is_reported_with_the_command_that_installs_it(
    root: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(ConfigError, match=r"need model-signing .*pip install 'medray\[sign\]'"):
        Registry(str(root)).resolve("cancer@1").check_signature(keys[1])
