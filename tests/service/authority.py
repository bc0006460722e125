"""Certificates for tests: an authority, and what it signs."""

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID


class Issued(NamedTuple):
    """The PEM files of a certificate and its key."""

    chain: Path
    key: Path


class Authority:
    """Issues certificates below a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"authority-{folder.name}"
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        limits = x509.BasicConstraints(ca=True, path_length=None)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        root = self._builder(self._name, self._key.public_key(), 30).add_extension(limits, critical=True)
        root = root.add_extension(usage, critical=True)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, *, days: int = 7, passphrase: bytes = b"", kind: str = "ec", hosts: tuple[str, ...] = ()
    ) -> Issued:
        """Issue a certificate for this machine, or for `hosts`; it ended before now where `days` is negative."""
        make = {
            "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
            "ed25519": ed25519.Ed25519PrivateKey.generate,
        }
        key = make[kind]()
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        names = names or [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        locked = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        issued = Issued(self._folder / f"{name}.pem", self._folder / f"{name}-key.pem")
        issued.chain.write_bytes(signed.public_bytes(pem))
        issued.key.write_bytes(key.private_bytes(pem, pkcs8, locked))
        return issued

    def _builder(self, subject: x509.Name, public: object, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        first = now - datetime.timedelta(days=20)
        return (
            x509.CertificateBuilder()
            .subject_name(subject).issuer_name(self._name).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(first).not_valid_after(now + datetime.timedelta(days=days))
        )  # fmt: skip
