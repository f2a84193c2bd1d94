//! Counters, as text in Prometheus' exposition format.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Upper bounds of the buckets of durations, in seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// What the operator counts.
#[derive(Default)]
pub struct Metrics {
    reconciles: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    durations: Mutex<BTreeMap<&'static str, Durations>>,
    writes: Mutex<BTreeMap<(&'static str, &'static str, &'static str), u64>>,
    watch_errors: AtomicU64,
    invalid_objects: AtomicU64,
    events_dropped: AtomicU64,
    leader: AtomicBool,
    ready: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A count that another thread left half-way is still a count.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Counts one reconcile of a kind.
    pub fn reconciled(&self, kind: &'static str, result: &'static str, took: Duration) {
        *locked(&self.reconciles).entry((kind, result)).or_default() += 1;
        let mut durations = locked(&self.durations);
        let entry = durations.entry(kind).or_default();
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
        for (bound, bucket) in BUCKETS.iter().zip(&mut entry.buckets) {
            if took.as_secs_f64() <= *bound {
                *bucket += 1;
            }
        }
    }

    /// Counts one write to the API.
    pub fn wrote(&self, verb: &'static str, resource: &'static str, result: &'static str) {
        *locked(&self.writes)
            .entry((verb, resource, result))
            .or_default() += 1;
    }

    /// Counts a broken watch.
    pub fn watch_failed(&self) {
        self.watch_errors.fetch_add(1, Relaxed);
    }

    /// Counts an object that does not have its kind's form.
    pub fn object_was_invalid(&self) {
        self.invalid_objects.fetch_add(1, Relaxed);
    }

    /// Counts an event that found no room.
    pub fn event_was_dropped(&self) {
        self.events_dropped.fetch_add(1, Relaxed);
    }

    /// Tells whether this process leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.store(leads, Relaxed);
    }

    /// Tells whether the API was reached and, when leading, the caches are full.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
    }

    /// Whether the API was reached and, when leading, the caches are full.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// All counters as text. `depth` is the queue's.
    #[must_use]
    pub fn text(&self, depth: usize) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(
            &mut out,
            "paddock_operator_reconciles_total",
            "counter",
            "Objects looked at, by kind and result.",
        );
        for ((kind, result), n) in &*locked(&self.reconciles) {
            let _ = writeln!(
                out,
                "paddock_operator_reconciles_total{{kind=\"{kind}\",result=\"{result}\"}} {n}"
            );
        }
        let name = "paddock_operator_reconcile_duration_seconds";
        head(
            &mut out,
            name,
            "histogram",
            "Time to look at one object and act.",
        );
        for (kind, d) in &*locked(&self.durations) {
            for (bound, n) in BUCKETS.iter().zip(d.buckets) {
                let _ = writeln!(out, "{name}_bucket{{kind=\"{kind}\",le=\"{bound}\"}} {n}");
            }
            let _ = writeln!(
                out,
                "{name}_bucket{{kind=\"{kind}\",le=\"+Inf\"}} {}",
                d.count
            );
            let _ = writeln!(out, "{name}_sum{{kind=\"{kind}\"}} {}", d.seconds);
            let _ = writeln!(out, "{name}_count{{kind=\"{kind}\"}} {}", d.count);
        }
        head(
            &mut out,
            "paddock_operator_api_writes_total",
            "counter",
            "Writes sent to the API, by verb, resource and result.",
        );
        for ((verb, resource, result), n) in &*locked(&self.writes) {
            let _ = writeln!(
                out,
                "paddock_operator_api_writes_total{{verb=\"{verb}\",resource=\"{resource}\",result=\"{result}\"}} {n}"
            );
        }
        let single = [
            (
                "paddock_operator_queue_depth",
                "gauge",
                "Objects that wait to be looked at.",
                u64::try_from(depth).unwrap_or(u64::MAX),
            ),
            (
                "paddock_operator_leader",
                "gauge",
                "Whether this process leads.",
                u64::from(self.leader.load(Relaxed)),
            ),
            (
                "paddock_operator_watch_errors_total",
                "counter",
                "Watches that broke and were begun anew.",
                self.watch_errors.load(Relaxed),
            ),
            (
                "paddock_operator_invalid_objects_total",
                "counter",
                "Objects that did not have their kind's form.",
                self.invalid_objects.load(Relaxed),
            ),
            (
                "paddock_operator_events_dropped_total",
                "counter",
                "Events that found no room in the queue to the API.",
                self.events_dropped.load(Relaxed),
            ),
        ];
        for (name, kind, help, value) in single {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_prometheus_text() {
        let metrics = Metrics::default();
        metrics.reconciled("Host", "done", Duration::from_millis(7));
        metrics.wrote("create", "leases", "ok");
        metrics.set_leader(true);
        let text = metrics.text(3);
        for line in [
            "paddock_operator_reconciles_total{kind=\"Host\",result=\"done\"} 1",
            "paddock_operator_reconcile_duration_seconds_bucket{kind=\"Host\",le=\"0.005\"} 0",
            "paddock_operator_reconcile_duration_seconds_bucket{kind=\"Host\",le=\"0.01\"} 1",
            "paddock_operator_reconcile_duration_seconds_bucket{kind=\"Host\",le=\"+Inf\"} 1",
            "paddock_operator_api_writes_total{verb=\"create\",resource=\"leases\",result=\"ok\"} 1",
            "paddock_operator_queue_depth 3",
            "paddock_operator_leader 1",
            "# TYPE paddock_operator_queue_depth gauge",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }
}
