//! The agent's counters, and their text in Prometheus' format (version 0.0.4).

use std::{
    fmt::Write,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Raises it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Changes it.
    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the agent counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Renewals of the lease that were taken.
    pub lease_renewals: Counter,
    /// Renewals of the lease without an answer.
    pub lease_failures: Counter,
    /// The host epoch that is held; 0: none.
    pub host_epoch: Gauge,
    /// Instances this host has to do with.
    pub instances: Gauge,
    /// Instances whose guest is up.
    pub instances_up: Gauge,
    /// Guests that were started.
    pub starts: Counter,
    /// Starts that failed.
    pub start_failures: Counter,
    /// Guests that ended without having been asked to.
    pub unasked_ends: Counter,
    /// Running processes that were taken over from an earlier agent.
    pub adoptions: Counter,
    /// Disk tasks that succeeded.
    pub tasks_succeeded: Counter,
    /// Disk tasks that failed.
    pub tasks_failed: Counter,
    /// Status writes that the API took.
    pub status_writes: Counter,
    /// Status writes that failed and were tried again.
    pub status_write_failures: Counter,
}

impl Metrics {
    /// All of it as text.
    #[must_use]
    pub fn render(&self) -> String {
        let counters = [
            (
                "paddock_agent_lease_renewals_total",
                "Renewals of the host's lease.",
                &self.lease_renewals,
            ),
            (
                "paddock_agent_lease_failures_total",
                "Renewals of the host's lease without an answer.",
                &self.lease_failures,
            ),
            (
                "paddock_agent_starts_total",
                "Guests started.",
                &self.starts,
            ),
            (
                "paddock_agent_start_failures_total",
                "Starts that failed.",
                &self.start_failures,
            ),
            (
                "paddock_agent_unasked_ends_total",
                "Guests that ended by themselves.",
                &self.unasked_ends,
            ),
            (
                "paddock_agent_adoptions_total",
                "Running machines taken over after a restart of the agent.",
                &self.adoptions,
            ),
            (
                "paddock_agent_tasks_succeeded_total",
                "Disk tasks that succeeded.",
                &self.tasks_succeeded,
            ),
            (
                "paddock_agent_tasks_failed_total",
                "Disk tasks that failed.",
                &self.tasks_failed,
            ),
            (
                "paddock_agent_status_writes_total",
                "Status writes that the API took.",
                &self.status_writes,
            ),
            (
                "paddock_agent_status_write_failures_total",
                "Status writes that failed.",
                &self.status_write_failures,
            ),
        ];
        let gauges = [
            (
                "paddock_agent_host_epoch",
                "The host epoch held, 0 for none.",
                &self.host_epoch,
            ),
            (
                "paddock_agent_instances",
                "Instances on this host.",
                &self.instances,
            ),
            (
                "paddock_agent_instances_up",
                "Instances whose guest is up.",
                &self.instances_up,
            ),
        ];
        let mut text = String::new();
        for (name, help, counter) in counters {
            line(&mut text, name, help, "counter", &counter.get());
        }
        for (name, help, gauge) in gauges {
            line(&mut text, name, help, "gauge", &gauge.get());
        }
        text
    }
}

fn line(text: &mut String, name: &str, help: &str, kind: &str, value: &dyn std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_prometheus_text() {
        let metrics = Metrics::default();
        metrics.starts.add(3);
        metrics.instances.set(2);
        let text = metrics.render();
        assert!(text.contains(
            "# HELP paddock_agent_starts_total Guests started.\n# TYPE paddock_agent_starts_total counter\npaddock_agent_starts_total 3\n"
        ));
        assert!(text.contains("# TYPE paddock_agent_instances gauge\npaddock_agent_instances 2\n"));
        assert!(text.ends_with('\n'));
    }
}
