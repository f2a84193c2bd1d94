//! Looks at the files of instances in threads that a dead pool may hold for ever: at most one for each instance.

use crate::instance::core::Failure;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

/// Longest wait for a pool; it may hold up a start, and those that wait for the same turn.
const LIMIT: Duration = Duration::from_secs(10);

/// The looks that are under way, by the uid of their instance.
#[derive(Debug)]
pub struct FileChecks {
    under_way: Arc<Mutex<HashSet<String>>>,
    limit: Duration,
}

impl Default for FileChecks {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            limit: LIMIT,
        }
    }
}

/// Ends a look, even one that breaks off.
struct UnderWay {
    list: Arc<Mutex<HashSet<String>>>,
    uid: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.list).remove(&self.uid);
    }
}

fn lock(list: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileChecks {
    /// Runs `check` for the instance `uid`.
    ///
    /// # Errors
    /// What it finds; PoolUnavailable when it takes longer than 10 s, or an earlier one has not ended.
    pub async fn run(
        &self,
        uid: &str,
        check: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), Failure> {
        let unavailable = |message: String| Failure::new("PoolUnavailable", message);
        if !lock(&self.under_way).insert(uid.to_owned()) {
            return Err(unavailable(
                "an earlier look at its files has not ended: a pool does not answer".to_owned(),
            ));
        }
        let under_way = UnderWay {
            list: self.under_way.clone(),
            uid: uid.to_owned(),
        };
        let (answer, answered) = oneshot::channel();
        std::thread::Builder::new()
            .name("files".to_owned())
            .spawn(move || {
                let result = check();
                drop(under_way);
                // Nobody may wait any more.
                let _ = answer.send(result);
            })
            .map_err(|error| unavailable(format!("start a thread: {error}")))?;
        match tokio::time::timeout(self.limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the look at its files broke off".to_owned())),
            Err(_) => Err(unavailable(format!(
                "its files could not be looked at within {} s: a pool does not answer",
                self.limit.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[tokio::test]
    async fn one_that_hangs_gets_no_second_thread_and_holds_up_no_other() {
        let checks = FileChecks {
            limit: Duration::from_millis(20),
            ..FileChecks::default()
        };
        let (go_on, wait) = channel::<()>();
        let hanging = checks.run("a", move || {
            let _ = wait.recv();
            Ok(())
        });
        let failure = hanging.await.unwrap_err();
        assert_eq!(failure.reason, "PoolUnavailable");
        let failure = checks
            .run("a", || panic!("a second one"))
            .await
            .unwrap_err();
        assert!(failure.message.contains("has not ended"), "{failure:?}");
        let long = FileChecks {
            under_way: checks.under_way.clone(),
            ..FileChecks::default()
        };
        let found = || Err(Failure::new("DiskMissing", "no"));
        assert_eq!(
            long.run("b", found).await.unwrap_err().reason,
            "DiskMissing"
        );
        drop(go_on);
        while !lock(&checks.under_way).is_empty() {
            tokio::task::yield_now().await;
        }
        long.run("a", || Ok(())).await.unwrap();
    }
}
