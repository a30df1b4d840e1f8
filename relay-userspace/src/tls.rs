//! TLS for QUIC: a self-signed certificate over the node key on both sides, and nothing else.
//!
//! Only Ed25519, one certificate, no resumption, no early data. Names and dates in certificates are not looked at: the
//! key is the identity.

use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as RustlsError, PeerIncompatible,
    SignatureAlgorithm, SignatureScheme,
};

use crate::identity::{NodeId, NodeKey, PublicKey};

/// ALPN between an agent and a relay.
pub const ALPN_RELAY: &[u8] = b"atlas/1";

/// ALPN between two agents.
pub const ALPN_PEER: &[u8] = b"atlas-peer/1";

/// The server name in every ClientHello. It says nothing, so that it tells an observer nothing.
pub const SERVER_NAME: &str = "atlas";

/// The side that listens, to agents ([`ALPN_RELAY`]) or to another agent ([`ALPN_PEER`]). It takes any peer with a sound
/// key; [`peer_key`] tells which.
///
/// # Errors
/// The TLS library does not take our key.
pub fn server_config(key: &NodeKey, alpn: &[u8]) -> Result<quinn::ServerConfig, TlsError> {
    let provider = provider();
    let own = Arc::new(SingleCertAndKey::from(certified(key)?));
    let verifier = Ed25519Peer::new(&provider, None);
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let config = QuicServerConfig::try_from(config).map_err(|_| TlsError::CipherSuite)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(config)))
}

/// The side that dials. With `expected`, a server with another id is refused within the TLS handshake.
///
/// # Errors
/// The TLS library does not take our key.
pub fn client_config(
    key: &NodeKey,
    alpn: &[u8],
    expected: Option<NodeId>,
) -> Result<quinn::ClientConfig, TlsError> {
    let provider = provider();
    let own = Arc::new(SingleCertAndKey::from(certified(key)?));
    let verifier = Ed25519Peer::new(&provider, expected);
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(own);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    let config = QuicClientConfig::try_from(config).map_err(|_| TlsError::CipherSuite)?;
    Ok(quinn::ClientConfig::new(Arc::new(config)))
}

/// The key that the peer of an established connection has proved to hold.
///
/// # Errors
/// The connection has no peer certificate or another ALPN than ours: neither happens with the configurations above.
pub fn peer_key(connection: &quinn::Connection) -> Result<PublicKey, TlsError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(TlsError::NoPeerCertificate)?;
    let certificate = chain.first().ok_or(TlsError::NoPeerCertificate)?;
    Ok(certificate_key(certificate)?)
}

/// The id of the peer of an established connection.
///
/// # Errors
/// As for [`peer_key`].
pub fn peer_node(connection: &quinn::Connection) -> Result<NodeId, TlsError> {
    peer_key(connection).map(|key| key.node_id())
}

/// The ALPN that both ends agreed on.
pub fn negotiated_alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// What can go wrong with our own TLS set-up, or with a peer's certificate after the fact.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("no certificate can be made over the node key: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses.
    #[error("TLS: {0}")]
    Rustls(#[from] RustlsError),
    /// QUIC's first packets need AES-128-GCM (RFC 9001, section 5.2).
    #[error("the TLS library lacks the cipher suite that QUIC begins with")]
    CipherSuite,
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate")]
    NoPeerCertificate,
}

/// Takes a peer whose one certificate carries a sound Ed25519 key, and which signs the handshake with it.
///
/// The certificate's own signature proves nothing more and is not checked; TLS's CertificateVerify proves the key.
#[derive(Debug)]
struct Ed25519Peer {
    algorithms: WebPkiSupportedAlgorithms,
    expected: Option<NodeId>,
}

impl Ed25519Peer {
    fn new(provider: &CryptoProvider, expected: Option<NodeId>) -> Arc<Self> {
        Arc::new(Ed25519Peer { algorithms: provider.signature_verification_algorithms, expected })
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), RustlsError> {
        if !others.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let key = certificate_key(certificate)?;
        match self.expected {
            Some(expected) if expected != key.node_id() => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

impl ServerCertVerifier for Ed25519Peer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        self.check(certificate, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Ed25519Peer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        self.check(certificate, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What precedes the 32 key bytes in the SubjectPublicKeyInfo of every Ed25519 key (RFC 8410, section 4).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The key in a certificate, read by the parser that also checks the handshake's signature: two parsers could disagree.
fn certificate_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, RustlsError> {
    let info = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let key = info.as_ref().strip_prefix(&ED25519_SPKI_PREFIX).ok_or(CertificateError::BadEncoding)?;
    // Weak keys are refused here: the TLS library would take a signature that anyone can forge for them.
    PublicKey::parse(key).map_err(|_| CertificateError::BadEncoding.into())
}

/// Our certificate, and what signs for it.
fn certified(key: &NodeKey) -> Result<CertifiedKey, TlsError> {
    let signer = TlsKey { public: key.public(), key: key.clone() };
    let certificate = rcgen::CertificateParams::new([SERVER_NAME.to_owned()])?.self_signed(&signer)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], Arc::new(signer)))
}

/// The node key as the TLS library and the maker of the certificate use it. They are given no copy: what they would do with
/// it is not ours to wipe.
#[derive(Clone, Debug)]
struct TlsKey {
    key: NodeKey,
    public: PublicKey,
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RustlsError> {
        Ok(self.key.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl rcgen::SigningKey for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}

impl rcgen::PublicKeyData for TlsKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use quinn::{ConnectionError, Endpoint};

    use super::*;

    #[tokio::test]
    async fn both_sides_learn_the_others_key() {
        let (client, server) = connect(dial(None, ALPN_RELAY)).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(peer_key(&client).unwrap(), bob().public());
        assert_eq!(peer_node(&server).unwrap(), alice().node_id());
        assert_eq!(negotiated_alpn(&server).as_deref(), Some(ALPN_RELAY));
    }

    #[tokio::test]
    async fn a_server_with_another_id_than_expected_is_refused() {
        assert!(connect(dial(Some(bob().node_id()), ALPN_RELAY)).await.0.is_ok());
        assert!(connect(dial(Some(alice().node_id()), ALPN_RELAY)).await.0.is_err());
    }

    #[tokio::test]
    async fn another_alpn_is_refused() {
        assert!(connect(dial(None, ALPN_PEER)).await.0.is_err());
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_is_refused() {
        let config = rustls_client().with_no_client_auth();
        assert!(connect(quinn_client(config)).await.1.is_err());
    }

    #[tokio::test]
    async fn a_client_that_shows_another_nodes_certificate_is_refused() {
        let shown = certified(&NodeKey::from_seed(&[3; 32])).unwrap().cert;
        let shown = CertifiedKey::new(shown, certified(&alice()).unwrap().key);
        let config = rustls_client().with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
        assert!(connect(quinn_client(config)).await.1.is_err());
    }

    #[test]
    fn a_certificate_with_a_weak_key_is_refused() {
        let chain = certified(&alice()).unwrap().cert;
        assert_eq!(certificate_key(&chain[0]).unwrap(), alice().public());
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let mut der = chain[0].to_vec();
        let key = alice().public();
        let at = der.windows(32).position(|window| window == key.as_bytes()).unwrap();
        der[at..at + 32].copy_from_slice(&identity_point);
        assert!(certificate_key(&der.into()).is_err());
    }

    #[test]
    fn certificates_over_other_kinds_of_keys_are_refused() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = rcgen::CertificateParams::new([]).unwrap().self_signed(&pair).unwrap();
        assert!(certificate_key(certificate.der()).is_err());
    }

    #[test]
    fn a_chain_is_refused() {
        let peer = Ed25519Peer::new(&provider(), None);
        let chain = certified(&alice()).unwrap().cert;
        assert!(peer.check(&chain[0], &[]).is_ok());
        assert!(peer.check(&chain[0], &chain).is_err());
    }

    fn alice() -> NodeKey {
        NodeKey::from_seed(&[1; 32])
    }

    fn bob() -> NodeKey {
        NodeKey::from_seed(&[2; 32])
    }

    fn dial(expected: Option<NodeId>, alpn: &[u8]) -> quinn::ClientConfig {
        client_config(&alice(), alpn, expected).unwrap()
    }

    fn rustls_client() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Ed25519Peer::new(&provider(), None))
    }

    fn quinn_client(mut config: rustls::ClientConfig) -> quinn::ClientConfig {
        config.alpn_protocols = vec![ALPN_RELAY.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    }

    /// What a client with `config` and a server that is Bob make of each other.
    async fn connect(
        config: quinn::ClientConfig,
    ) -> (Result<quinn::Connection, ConnectionError>, Result<quinn::Connection, ConnectionError>) {
        let loopback = "127.0.0.1:0".parse().unwrap();
        let server = Endpoint::server(server_config(&bob(), ALPN_RELAY).unwrap(), loopback).unwrap();
        let client = Endpoint::client(loopback).unwrap();
        let connecting = client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
        let accepting = async { server.accept().await.unwrap().await };
        tokio::join!(connecting, accepting)
    }
}
