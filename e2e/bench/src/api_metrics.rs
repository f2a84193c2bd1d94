//! What the API server says of the requests it served (`apiserver_request_total`).

use anyhow::{Context, Result};
use kube::Client;
use std::collections::BTreeMap;

/// Counts of writes, by kind of object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Writes {
    /// Ours, by `resource[/subresource] VERB`.
    pub paddock: BTreeMap<String, f64>,
    /// Events.
    pub events: f64,
    /// Leases.
    pub leases: f64,
    /// Refused or failed ones among ours (409 and the like).
    pub failed: f64,
}

impl Writes {
    /// The counts of now.
    pub async fn now(client: &Client) -> Result<Self> {
        let request = http_get("/metrics")?;
        let text = client
            .request_text(request)
            .await
            .context("the API server's metrics")?;
        Ok(Self::parse(&text))
    }

    /// Counts from the text format of Prometheus; lines of other metrics and reads are passed over.
    pub fn parse(text: &str) -> Self {
        let mut writes = Self::default();
        for line in text
            .lines()
            .filter(|l| l.starts_with("apiserver_request_total{"))
        {
            let Some((labels, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else {
                continue;
            };
            let label = |name: &str| {
                labels
                    .split_once(&format!("{name}=\""))
                    .and_then(|(_, rest)| rest.split_once('"'))
                    .map_or("", |(v, _)| v)
            };
            let verb = label("verb");
            if !["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb) {
                continue;
            }
            match (label("group"), label("resource")) {
                ("paddock.dev", resource) => {
                    let subresource = label("subresource");
                    let slash = if subresource.is_empty() { "" } else { "/" };
                    *writes
                        .paddock
                        .entry(format!("{resource}{slash}{subresource} {verb}"))
                        .or_default() += value;
                    if !label("code").starts_with('2') {
                        writes.failed += value;
                    }
                }
                (_, "events") => writes.events += value,
                (_, "leases") => writes.leases += value,
                _ => {}
            }
        }
        writes
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |key: &String| earlier.paddock.get(key).copied().unwrap_or(0.0);
        Self {
            paddock: self
                .paddock
                .iter()
                .map(|(key, value)| (key.clone(), value - before(key)))
                .filter(|(_, value)| *value != 0.0)
                .collect(),
            events: self.events - earlier.events,
            leases: self.leases - earlier.leases,
            failed: self.failed - earlier.failed,
        }
    }

    /// All of ours.
    pub fn total(&self) -> f64 {
        // The sum of nothing is -0.0.
        self.paddock.values().sum::<f64>() + 0.0
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP apiserver_request_total x
apiserver_request_total{code="201",component="apiserver",dry_run="",group="paddock.dev",resource="virtualmachines",scope="resource",subresource="",verb="POST",version="v1alpha1"} 3
apiserver_request_total{code="200",component="apiserver",dry_run="",group="paddock.dev",resource="virtualmachines",scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 6
apiserver_request_total{code="409",component="apiserver",dry_run="",group="paddock.dev",resource="virtualharddisks",scope="resource",subresource="status",verb="PUT",version="v1alpha1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="paddock.dev",resource="virtualmachines",scope="cluster",subresource="",verb="WATCH",version="v1alpha1"} 9
apiserver_request_total{code="200",component="apiserver",dry_run="",group="coordination.k8s.io",resource="leases",scope="resource",subresource="",verb="PUT",version="v1"} 20
apiserver_request_total{code="201",component="apiserver",dry_run="",group="events.k8s.io",resource="events",scope="resource",subresource="",verb="POST",version="v1"} 2
"#;

    #[test]
    fn counts_writes_apart_from_reads_leases_and_events() {
        let writes = Writes::parse(TEXT);
        assert_eq!(writes.total(), 10.0);
        assert_eq!(writes.paddock["virtualmachines/status APPLY"], 6.0);
        assert_eq!(
            (writes.events, writes.leases, writes.failed),
            (2.0, 20.0, 1.0)
        );
        assert_eq!(writes.since(&writes), Writes::default());
    }
}
