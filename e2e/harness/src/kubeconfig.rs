//! Kubeconfig files that hold everything themselves.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::certificates::Identity;

/// Where and how to reach an API server.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `https://ADDRESS:PORT`.
    pub url: String,
    /// The authority of the server's certificate, PEM; `None` trusts the system's.
    pub authority: Option<String>,
    /// The name in the server's certificate, when it is not the one in `url`.
    pub server_name: Option<String>,
    /// Whether the server's certificate goes unchecked, because the kubeconfig given says so.
    pub insecure: bool,
}

/// Who one is.
pub enum Credential<'a> {
    /// A client certificate.
    Certificate(&'a Identity),
    /// A bearer token.
    Token(&'a str),
}

/// The text of a kubeconfig: YAML, to be kept in files of mode 0600.
pub fn render(endpoint: &Endpoint, user: &str, credential: &Credential<'_>) -> Result<String> {
    let mut cluster = json!({ "server": endpoint.url });
    if let Some(authority) = &endpoint.authority {
        cluster["certificate-authority-data"] = encode(authority);
    }
    if let Some(name) = &endpoint.server_name {
        cluster["tls-server-name"] = name.as_str().into();
    }
    if endpoint.insecure {
        cluster["insecure-skip-tls-verify"] = true.into();
    }
    let credential = match credential {
        Credential::Certificate(identity) => json!({
            "client-certificate-data": encode(&identity.certificate),
            "client-key-data": encode(&identity.key),
        }),
        Credential::Token(token) => json!({ "token": token }),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "paddock-lab", "cluster": cluster }],
        "users": [{ "name": user, "user": credential }],
        "contexts": [{ "name": "paddock-lab", "context": { "cluster": "paddock-lab", "user": user } }],
        "current-context": "paddock-lab",
    });
    serde_yaml::to_string(&config).context("kubeconfig")
}

fn encode(text: &str) -> Value {
    STANDARD.encode(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_reads_it_back() {
        let endpoint = Endpoint {
            url: "https://10.213.0.2:6443".into(),
            authority: Some("CA".into()),
            server_name: Some("api.example.org".into()),
            insecure: false,
        };
        let text = render(
            &endpoint,
            "paddock:host:host-a",
            &Credential::Token("secret"),
        )
        .unwrap();
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let cluster = config.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.213.0.2:6443"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("api.example.org"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        assert_eq!(cluster.insecure_skip_tls_verify, None);
        assert_eq!(config.current_context.as_deref(), Some("paddock-lab"));
        assert_eq!(config.auth_infos[0].name, "paddock:host:host-a");
    }
}
