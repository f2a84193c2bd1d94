//! The cluster's certificates, made anew at each start: X.509 version 3, ECDSA on P-256.
//!
//! Only the key of service-account tokens outlives a restart, so that tokens given out stay good.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8. Never log it.
    pub key: String,
}

/// The cluster's certificate authority; its key never leaves the process.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new authority.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("paddock-lab", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().context("key of the certificate authority")?;
        Ok(Self(
            CertifiedIssuer::self_signed(params, key).context("certificate authority")?,
        ))
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// The API server's certificate for these addresses and the names that clients in a cluster use.
    pub fn serving(&self, addresses: &[IpAddr]) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("kube-apiserver", &[]);
        params.subject_alt_names = serving_names(addresses)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A client's certificate: `user` is the user name, `groups` are its groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("key")?;
        let certificate = params.signed_by(&key, &self.0).context("certificate")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// The name of somebody in a certificate, as Kubernetes reads it: common name = user, organizations = groups.
fn name(user: &str, groups: &[&str]) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, user);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name
}

/// The subject alternative names of the API server.
fn serving_names(addresses: &[IpAddr]) -> Result<Vec<SanType>> {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let names = names
        .iter()
        .map(|name| Ok(SanType::DnsName((*name).try_into().context("DNS name")?)));
    let always: [IpAddr; 3] = [
        [127, 0, 0, 1].into(),
        std::net::Ipv6Addr::LOCALHOST.into(),
        [10, 0, 0, 1].into(),
    ];
    names
        .chain(
            always
                .iter()
                .chain(addresses)
                .map(|address| Ok(SanType::IpAddress(*address))),
        )
        .collect()
}

/// The key pair that signs service-account tokens: (private, public), both PEM; `existing` is the private key of an earlier start.
pub fn service_account_keys(existing: Option<&str>) -> Result<(String, String)> {
    let key = match existing {
        Some(pem) => KeyPair::from_pem(pem).context(
            "service-account key of an earlier start; delete the file to have a new one",
        )?,
        None => KeyPair::generate().context("service-account key")?,
    };
    Ok((key.serialize_pem(), key.public_key_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_known_by_its_addresses_and_names() {
        let names = serving_names(&[[10, 213, 0, 2].into()]).unwrap();
        let text: Vec<String> = names
            .iter()
            .map(|name| match name {
                SanType::DnsName(name) => name.as_str().to_owned(),
                SanType::IpAddress(address) => address.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            text,
            [
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "127.0.0.1",
                "::1",
                "10.0.0.1",
                "10.213.0.2",
            ]
        );
    }

    #[test]
    fn names_are_user_and_groups() {
        let name = name("paddock:host:host-a", &["paddock:hosts"]);
        let parts: Vec<String> = name
            .iter()
            .map(|(kind, value)| format!("{kind:?}={value:?}"))
            .collect();
        assert_eq!(
            parts,
            [
                "CommonName=Utf8String(\"paddock:host:host-a\")",
                "OrganizationName=Utf8String(\"paddock:hosts\")"
            ]
        );
    }

    #[test]
    fn identities_differ_and_are_signed_by_the_authority() {
        let authority = Authority::new().unwrap();
        let a = authority.client("a", &[]).unwrap();
        let b = authority.client("a", &[]).unwrap();
        assert_ne!(a.key, b.key);
        assert!(a.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(a.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_ne!(authority.certificate(), a.certificate);
    }

    #[test]
    fn a_kept_service_account_key_stays() {
        let (private, public) = service_account_keys(None).unwrap();
        assert_eq!(service_account_keys(Some(&private)).unwrap().1, public);
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----"));
        assert!(service_account_keys(Some("junk")).is_err());
    }
}
