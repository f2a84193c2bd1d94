//! What the lab says to an API server: YAML applied as it is, Host objects, service accounts, leases.
//!
//! By text and JSON alone, so that the lab works with whatever version of the API it finds in the checkout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::{Api, Client, Config};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::kubeconfig::Endpoint;

/// Namespace of operator, leases and service accounts.
pub const SYSTEM_NAMESPACE: &str = "paddock-system";
/// Agents' own service accounts are named so, with their host's name after it.
const AGENT_ACCOUNT_PREFIX: &str = "paddock-host-";
/// Field manager of everything the lab applies.
const MANAGER: &str = "paddock-lab";
/// Marks what `down` deletes from somebody else's cluster; the value is the lab's id.
const LAB_LABEL: &str = "paddock.dev/lab";
/// Longest life asked for a token; a server may give less.
const TOKEN_SECONDS: i64 = 30 * 24 * 3600;

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// With the kubeconfig of `text`. `via` replaces the server's address (the name in its certificate stays the same).
    pub async fn connect(text: &str, via: Option<&Endpoint>) -> Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(text).context("kubeconfig")?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .context("kubeconfig")?;
        if let Some(via) = via {
            config.cluster_url = via.url.parse().context("address of the API server")?;
            config.tls_server_name.clone_from(&via.server_name);
            config.proxy_url = None;
        }
        config.connect_timeout = Some(Duration::from_secs(3));
        config.read_timeout = Some(Duration::from_secs(20));
        config.write_timeout = Some(Duration::from_secs(20));
        Ok(Self {
            client: Client::try_from(config).context("client of the API server")?,
        })
    }

    /// Whether the API server says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
            return false;
        };
        let answer =
            tokio::time::timeout(Duration::from_secs(3), self.client.request_text(request)).await;
        matches!(answer, Ok(Ok(text)) if text == "ok")
    }

    /// Waits until it is.
    pub async fn wait_ready(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.is_ready().await {
            if Instant::now() > deadline {
                bail!(
                    "the API server was not ready within {} s; see `paddock-lab logs apiserver`",
                    limit.as_secs()
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Applies every document in the YAML files, in their order, and waits until the CustomResourceDefinitions among them are served.
    pub async fn apply_files(&self, files: &[PathBuf]) -> Result<usize> {
        let mut kinds = BTreeMap::new();
        let mut definitions = Vec::new();
        let mut count = 0;
        for file in files {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            for object in documents(&text).with_context(|| file.display().to_string())? {
                if object["kind"] == "CustomResourceDefinition" {
                    definitions.extend(object["metadata"]["name"].as_str().map(str::to_owned));
                }
                self.apply(&object, &mut kinds)
                    .await
                    .with_context(|| file.display().to_string())?;
                count += 1;
            }
        }
        self.wait_established(&definitions).await?;
        Ok(count)
    }

    async fn apply(
        &self,
        object: &Value,
        kinds: &mut BTreeMap<(String, String), (ApiResource, ApiCapabilities)>,
    ) -> Result<()> {
        let text = |value: &Value, what: &str| {
            value
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("object without {what}"))
        };
        let version = text(&object["apiVersion"], "apiVersion")?;
        let kind = text(&object["kind"], "kind")?;
        let name = text(&object["metadata"]["name"], "metadata.name")?;
        let key = (version.clone(), kind.clone());
        if !kinds.contains_key(&key) {
            let (group, version) = version.split_once('/').unwrap_or(("", version.as_str()));
            let found = pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, &kind))
                .await
                .with_context(|| {
                    format!("{kind} {name}: the API server does not know this kind")
                })?;
            kinds.insert(key.clone(), found);
        }
        let Some((resource, capabilities)) = kinds.get(&key) else {
            bail!("{kind} {name}: kind lost")
        };
        let api: Api<DynamicObject> = match (
            &capabilities.scope,
            object["metadata"]["namespace"].as_str(),
        ) {
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), resource),
            (Scope::Namespaced, namespace) => Api::namespaced_with(
                self.client.clone(),
                namespace.unwrap_or(SYSTEM_NAMESPACE),
                resource,
            ),
        };
        patch(&api, &name, object)
            .await
            .with_context(|| format!("applying {kind} {name}"))
    }

    async fn wait_established(&self, names: &[String]) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let deadline = Instant::now() + Duration::from_secs(30);
        for name in names {
            loop {
                let definition = api
                    .get(name)
                    .await
                    .with_context(|| format!("CustomResourceDefinition {name}"))?;
                let conditions = definition
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                if conditions
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True")
                {
                    break;
                }
                if Instant::now() > deadline {
                    bail!(
                        "CustomResourceDefinition {name} was not established within 30 s: {conditions:?}"
                    );
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Applies the Host object of a lab's host. Waits while the kind is not served yet.
    pub async fn apply_host(&self, host: &Value) -> Result<()> {
        let name = host["metadata"]["name"]
            .as_str()
            .context("host without a name")?;
        patch(&self.hosts(), name, host)
            .await
            .with_context(|| format!("applying Host {name}"))
    }

    /// Gives out a token of the service account `name`, made first if it is an agent's.
    pub async fn service_account_token(&self, name: &str, lab: &str) -> Result<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        // The operator's account came with the RBAC files and stays; an agent's own is the lab's.
        if name.starts_with(AGENT_ACCOUNT_PREFIX) {
            self.make_agent_account(name, lab).await?;
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = api
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("token of service account {name}"))?;
        answer
            .status
            .map(|status| status.token)
            .with_context(|| format!("no token for service account {name}"))
    }

    /// Makes an agent's service account and binds it to the agents' roles.
    async fn make_agent_account(&self, name: &str, lab: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let everywhere: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let apply = PatchParams::apply(MANAGER).force();
        let labels = json!({ LAB_LABEL: lab });
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": SYSTEM_NAMESPACE, "labels": labels },
        });
        accounts
            .patch(name, &apply, &Patch::Apply(&account))
            .await
            .with_context(|| format!("service account {name}"))?;
        let binding = |kind: &str, role: &str| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": { "name": name, "labels": labels },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": "paddock-agent" },
                "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": SYSTEM_NAMESPACE }],
            })
        };
        everywhere
            .patch(
                name,
                &apply,
                &Patch::Apply(&binding("ClusterRoleBinding", "ClusterRole")),
            )
            .await
            .with_context(|| format!("cluster role binding {name}"))?;
        bindings
            .patch(name, &apply, &Patch::Apply(&binding("RoleBinding", "Role")))
            .await
            .with_context(|| format!("role binding {name}"))?;
        Ok(())
    }

    /// The hosts whose lease is held.
    pub async fn held_leases(&self) -> Result<BTreeSet<String>> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let leases = tokio::time::timeout(Duration::from_secs(3), api.list(&ListParams::default()))
            .await??;
        Ok(leases
            .items
            .into_iter()
            .filter(|lease| {
                let annotations = lease.metadata.annotations.as_ref();
                annotations
                    .and_then(|a| a.get("lease.paddock.dev/state"))
                    .is_some_and(|state| state == "Held")
            })
            .filter_map(|lease| lease.metadata.name)
            .collect())
    }

    /// The uid of a VM's instance; `None` when there is none.
    pub async fn instance_uid(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        let api: Api<DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            namespace,
            &paddock("VirtualMachineInstance", "virtualmachineinstances"),
        );
        let instance = tokio::time::timeout(Duration::from_secs(3), api.get_opt(name)).await??;
        Ok(instance.and_then(|instance| instance.metadata.uid))
    }

    /// Deletes what the lab `id` put into somebody else's cluster: its Hosts, their leases and service accounts. CRDs, RBAC and
    /// users' objects stay.
    pub async fn remove_lab_objects(&self, id: &str) -> Result<usize> {
        let mine = ListParams::default().labels(&format!("{LAB_LABEL}={id}"));
        let delete = DeleteParams::default();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let everywhere: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let mut count = 0;
        let hosts = match self.hosts().list(&mine).await {
            Ok(hosts) => hosts.items,
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            Err(error) => return Err(error).context("hosts of the lab"),
        };
        for host in hosts.into_iter().filter_map(|host| host.metadata.name) {
            gone(self.hosts().delete(&host, &delete).await.map(drop))
                .with_context(|| format!("deleting Host {host}"))?;
            gone(leases.delete(&host, &delete).await.map(drop))
                .with_context(|| format!("deleting Lease {host}"))?;
            count += 1;
        }
        for account in accounts
            .list(&mine)
            .await
            .context("service accounts of the lab")?
            .items
        {
            let name = account.metadata.name.unwrap_or_default();
            gone(everywhere.delete(&name, &delete).await.map(drop))
                .with_context(|| format!("deleting ClusterRoleBinding {name}"))?;
            gone(bindings.delete(&name, &delete).await.map(drop))
                .with_context(|| format!("deleting RoleBinding {name}"))?;
            gone(accounts.delete(&name, &delete).await.map(drop))
                .with_context(|| format!("deleting ServiceAccount {name}"))?;
            count += 1;
        }
        Ok(count)
    }

    fn hosts(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &paddock("Host", "hosts"))
    }
}

async fn patch(api: &Api<DynamicObject>, name: &str, object: &Value) -> Result<(), kube::Error> {
    api.patch(
        name,
        &PatchParams::apply(MANAGER).force(),
        &Patch::Apply(object),
    )
    .await
    .map(drop)
}

fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

fn paddock(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("paddock.dev", "v1alpha1", kind),
        plural,
    )
}

/// The objects in a YAML text; empty documents are left out.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).context("not YAML"))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// The Host object of a host whose `/var/lib/paddock` is `state`.
pub fn host_object(
    name: &str,
    lab: &str,
    state: &Path,
    with_shared_pools: bool,
    uplink: Option<&str>,
) -> Value {
    let pools = state.join("pools");
    let mut list = vec![json!({ "name": "default", "path": pools.join("default") })];
    if with_shared_pools {
        list.push(json!({ "name": "shared", "path": pools.join("shared"), "scope": "Shared" }));
        list.push(json!({ "name": "images", "path": pools.join("images"), "scope": "Shared", "kinds": ["Images"] }));
    }
    let uplinks: Vec<Value> = uplink
        .iter()
        .map(|interface| json!({ "name": "lan", "interface": interface }))
        .collect();
    json!({
        "apiVersion": "paddock.dev/v1alpha1",
        "kind": "Host",
        "metadata": { "name": name, "labels": { LAB_LABEL: lab } },
        "spec": { "pools": list, "uplinks": uplinks },
    })
}

/// How to reach, through `url`, the cluster that a kubeconfig is about: also its real address as (host, port).
pub fn external_endpoint(text: &str, url: &str) -> Result<(Endpoint, String, u16)> {
    let kubeconfig = Kubeconfig::from_yaml(text).context("kubeconfig")?;
    let context = kubeconfig
        .current_context
        .as_deref()
        .context("kubeconfig without current-context")?;
    let context = kubeconfig
        .contexts
        .iter()
        .find(|c| c.name == context)
        .and_then(|c| c.context.as_ref());
    let name = &context
        .context("kubeconfig: its current-context does not exist")?
        .cluster;
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|c| &c.name == name)
        .and_then(|c| c.cluster.as_ref());
    let cluster = cluster.with_context(|| format!("kubeconfig: no cluster {name:?}"))?;
    let server: http::Uri = cluster
        .server
        .as_deref()
        .context("kubeconfig: cluster without server")?
        .parse()
        .context("kubeconfig: server")?;
    if server.scheme_str() != Some("https") || !matches!(server.path(), "" | "/") {
        bail!("kubeconfig: expected a server https://HOST:PORT, found {server}");
    }
    let host = server
        .host()
        .context("kubeconfig: server without a host")?
        .trim_matches(['[', ']'])
        .to_owned();
    let authority = match (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(data)
                .context("kubeconfig: certificate-authority-data")?;
            Some(String::from_utf8(bytes).context("kubeconfig: certificate-authority-data")?)
        }
        (None, Some(file)) => {
            Some(std::fs::read_to_string(file).with_context(|| format!("kubeconfig: {file}"))?)
        }
        (None, None) => None,
    };
    let endpoint = Endpoint {
        url: url.to_owned(),
        authority,
        server_name: Some(
            cluster
                .tls_server_name
                .clone()
                .unwrap_or_else(|| host.clone()),
        ),
        insecure: cluster.insecure_skip_tls_verify.unwrap_or(false),
    };
    Ok((endpoint, host, server.port_u16().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_documents() {
        let found =
            documents("# comment\n---\nkind: A\n---\n---\nkind: B\nmetadata: {name: x}\n").unwrap();
        assert_eq!(
            found,
            [
                json!({"kind": "A"}),
                json!({"kind": "B", "metadata": {"name": "x"}})
            ]
        );
        assert!(documents("a: [").is_err());
    }

    #[test]
    fn host_objects() {
        let host = host_object(
            "host-a",
            "0a1b2c3d",
            Path::new("/var/lib/paddock"),
            true,
            Some("lan0"),
        );
        assert_eq!(
            host["spec"],
            json!({
                "pools": [
                    {"name": "default", "path": "/var/lib/paddock/pools/default"},
                    {"name": "shared", "path": "/var/lib/paddock/pools/shared", "scope": "Shared"},
                    {"name": "images", "path": "/var/lib/paddock/pools/images", "scope": "Shared", "kinds": ["Images"]},
                ],
                "uplinks": [{"name": "lan", "interface": "lan0"}],
            })
        );
        let hollow = host_object("hollow-1", "0a1b2c3d", Path::new("/x"), false, None);
        assert_eq!(
            hollow["spec"],
            json!({"pools": [{"name": "default", "path": "/x/pools/default"}], "uplinks": []})
        );
    }

    #[test]
    fn external_clusters() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                    clusters: [{name: k, cluster: {server: 'https://api.example.org', certificate-authority-data: Q0E=}}]\n";
        let (endpoint, host, port) = external_endpoint(text, "https://10.213.0.2:6443").unwrap();
        assert_eq!((host.as_str(), port), ("api.example.org", 443));
        assert_eq!(endpoint.authority.as_deref(), Some("CA"));
        assert_eq!(endpoint.server_name.as_deref(), Some("api.example.org"));
        assert!(!endpoint.insecure);
        let v6 = text.replace("https://api.example.org", "https://[fd00::1]:6443");
        let (_, host, port) = external_endpoint(&v6, "x").unwrap();
        assert_eq!((host.as_str(), port), ("fd00::1", 6443));
        assert!(external_endpoint(&text.replace("https:", "http:"), "x").is_err());
        assert!(external_endpoint(&text.replace("org'", "org/k8s/clusters/1'"), "x").is_err());
    }
}
