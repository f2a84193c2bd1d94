//! Looks at pools, each in a thread of its own, so that one that hangs is the only one that is unavailable.
//!
//! A file system that does not answer (a dead NFS server) holds its thread for as long as it likes. No second thread is
//! started for it: there are never more than paths that were ever named.

use super::facts::{PoolFact, pool_fact};
use paddock_crds::HostSpec;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long those that answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long one round waits for answers. What comes later counts in the next round.
    pub round: Duration,
    /// A pool that has not answered for this long is unavailable; until then what it said before holds.
    pub pool: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            round: Duration::from_secs(1),
            pool: Duration::from_secs(10),
        }
    }
}

type Look = Arc<dyn Fn(&str) -> PoolFact + Send + Sync>;

/// Looks at the pools of a Host, again and again.
pub struct PoolLooks {
    limits: Limits,
    look: Look,
    /// By the pool's path.
    known: HashMap<String, Known>,
}

#[derive(Default)]
struct Known {
    running: Option<(Instant, oneshot::Receiver<PoolFact>)>,
    last: Option<PoolFact>,
}

impl PoolLooks {
    /// Looks at real pools.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::with(limits, Arc::new(pool_fact))
    }

    fn with(limits: Limits, look: Look) -> Self {
        Self {
            limits,
            look,
            known: HashMap::new(),
        }
    }

    /// How much room the pools of `spec` have, by name; nothing of one that is new and has not answered yet.
    pub async fn round(&mut self, spec: &HostSpec) -> BTreeMap<String, PoolFact> {
        let named: HashSet<&str> = spec.pools.iter().map(|pool| pool.path.as_str()).collect();
        self.known
            .retain(|path, known| named.contains(path.as_str()) || known.running.is_some());
        let end = tokio::time::Instant::now() + self.limits.round;
        for path in &named {
            self.known
                .entry((*path).to_owned())
                .or_default()
                .start(path, &self.look);
        }
        for known in self.known.values_mut() {
            known.wait(end, self.limits.pool).await;
        }
        spec.pools
            .iter()
            .filter_map(|pool| {
                let last = self.known.get(&pool.path)?.last.clone()?;
                Some((pool.name.clone(), last))
            })
            .collect()
    }
}

impl Known {
    /// Starts a look, unless one is still under way.
    fn start(&mut self, path: &str, look: &Look) {
        if self.running.is_some() {
            return;
        }
        let (answer, answered) = oneshot::channel();
        let started = std::thread::Builder::new().name("pool".to_owned()).spawn({
            let (path, look) = (path.to_owned(), look.clone());
            move || {
                // Nobody waits any more when the agent ends.
                let _ = answer.send(look(&path));
            }
        });
        match started {
            Ok(_) => self.running = Some((Instant::now(), answered)),
            Err(error) => self.last = Some(Err(format!("start a thread: {error}"))),
        }
    }

    async fn wait(&mut self, end: tokio::time::Instant, limit: Duration) {
        let Some((since, answered)) = &mut self.running else {
            return;
        };
        match tokio::time::timeout_at(end, answered).await {
            Ok(Ok(fact)) => {
                self.last = Some(fact);
                self.running = None;
            }
            Ok(Err(_)) => {
                self.last = Some(Err("the look at it broke off".to_owned()));
                self.running = None;
            }
            Err(_) if since.elapsed() >= limit => {
                self.last = Some(Err(format!(
                    "it does not answer, for {} s and more: look after the storage below it",
                    limit.as_secs()
                )));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::Space;
    use paddock_crds::host::{Pool, PoolScope};
    use std::sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    const SPACE: Space = Space {
        capacity: 10,
        free: 5,
    };

    /// Pools that hang as long as their path is in the list.
    #[derive(Default)]
    struct Storage {
        hanging: Mutex<Vec<&'static str>>,
        changed: Condvar,
        looks: AtomicUsize,
    }

    impl Storage {
        fn looks(self: &Arc<Self>, limits: Limits) -> PoolLooks {
            let storage = self.clone();
            PoolLooks::with(
                limits,
                Arc::new(move |path| {
                    storage.looks.fetch_add(1, Ordering::SeqCst);
                    let mut hanging = storage.hanging.lock().unwrap();
                    while hanging.contains(&path) {
                        hanging = storage.changed.wait(hanging).unwrap();
                    }
                    Ok(SPACE)
                }),
            )
        }

        fn hang(&self, paths: &[&'static str]) {
            *self.hanging.lock().unwrap() = paths.to_vec();
            self.changed.notify_all();
        }
    }

    fn spec(pools: &[(&str, &str)]) -> HostSpec {
        let pool = |&(name, path): &(&str, &str)| Pool {
            name: name.into(),
            path: path.into(),
            scope: PoolScope::Shared,
            kinds: vec![],
        };
        HostSpec {
            pools: pools.iter().map(pool).collect(),
            ..HostSpec::default()
        }
    }

    fn limits(pool: Duration) -> Limits {
        Limits {
            round: Duration::from_millis(20),
            pool,
        }
    }

    /// Rounds until `name` has said what is expected.
    async fn until(
        looks: &mut PoolLooks,
        spec: &HostSpec,
        name: &str,
        expected: impl Fn(Option<&PoolFact>) -> bool,
    ) -> BTreeMap<String, PoolFact> {
        for _ in 0..1000 {
            let facts = looks.round(spec).await;
            if expected(facts.get(name)) {
                return facts;
            }
        }
        panic!("never");
    }

    #[tokio::test]
    async fn only_the_pool_that_hangs_is_unavailable_and_one_thread_waits_for_it() {
        let storage = Arc::new(Storage::default());
        storage.hang(&["/b"]);
        let mut looks = storage.looks(limits(Duration::ZERO));
        let spec = spec(&[("a", "/a"), ("b", "/b"), ("c", "/c")]);
        let is_down = |fact: Option<&PoolFact>| matches!(fact, Some(Err(_)));
        let is_up = |fact: Option<&PoolFact>| fact == Some(&Ok(SPACE));
        let facts = until(&mut looks, &spec, "b", is_down).await;
        assert!(facts["b"].as_ref().unwrap_err().contains("does not answer"));
        until(&mut looks, &spec, "a", is_up).await;
        until(&mut looks, &spec, "c", is_up).await;
        let before = storage.looks.load(Ordering::SeqCst);
        let facts = looks.round(&spec).await;
        assert!(is_down(facts.get("b")));
        assert_eq!(storage.looks.load(Ordering::SeqCst), before + 2, "a and c");
        storage.hang(&[]);
        until(&mut looks, &spec, "b", is_up).await;
    }

    #[tokio::test]
    async fn what_a_slow_pool_said_before_holds_for_a_while() {
        let storage = Arc::new(Storage::default());
        let mut looks = storage.looks(limits(Duration::from_secs(3600)));
        let spec = spec(&[("a", "/a"), ("new", "/new")]);
        storage.hang(&["/new"]);
        let is_up = |fact: Option<&PoolFact>| fact == Some(&Ok(SPACE));
        until(&mut looks, &spec, "a", is_up).await;
        storage.hang(&["/a", "/new"]);
        for _ in 0..3 {
            let facts = looks.round(&spec).await;
            assert_eq!(facts, BTreeMap::from([("a".to_owned(), Ok(SPACE))]));
        }
        storage.hang(&[]);
        until(&mut looks, &spec, "new", is_up).await;
    }

    #[tokio::test]
    async fn a_pool_that_is_not_named_any_more_is_forgotten_once_it_answers() {
        let storage = Arc::new(Storage::default());
        let mut looks = storage.looks(limits(Duration::ZERO));
        storage.hang(&["/a"]);
        for _ in 0..3 {
            looks.round(&spec(&[("a", "/a")])).await;
            assert_eq!(looks.round(&spec(&[])).await, BTreeMap::new());
        }
        assert_eq!(storage.looks.load(Ordering::SeqCst), 1);
        storage.hang(&[]);
        for _ in 0..1000 {
            if looks.known.is_empty() {
                return;
            }
            looks.round(&spec(&[])).await;
        }
        panic!("not forgotten");
    }
}
