"""A certificate authority of the tests, with certificates of a server on loopback and of a client."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CLIENT = "client-by-certificate"
"""The common name in the client's certificate: the user of RabbitMQ."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def _issue(
    name: str, issuer: Issued | None, *, is_authority: bool = False, address: str = "127.0.0.1"
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    # Without these extensions, Python 3.13 refuses a certificate.
    uses = dict.fromkeys(("content_commitment", "data_encipherment", "key_agreement", "crl_sign"), False)
    uses |= {"encipher_only": False, "decipher_only": False, "key_encipherment": not is_authority}
    uses |= {"digital_signature": not is_authority, "key_cert_sign": is_authority}
    signer = (issuer.key if issuer else key).public_key()
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    )
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def write_certificates(directory: Path, address: str = "127.0.0.1") -> None:
    """Write the PEM files of an authority, of a server at an address and of a client, and another authority."""
    directory.mkdir()
    authority = _issue("authority of the tests", None, is_authority=True)
    (directory / "ca.pem").write_bytes(authority.certificate_pem())
    (directory / "other-ca.pem").write_bytes(
        _issue("another authority", None, is_authority=True).certificate_pem()
    )
    for name, common_name in (("server", address), ("client", CLIENT)):
        issued = _issue(common_name, authority, address=address)
        (directory / f"{name}.pem").write_bytes(issued.certificate_pem())
        (directory / f"{name}-key.pem").write_bytes(issued.key_pem())
