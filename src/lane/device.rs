//! Model stages: one at a time, so that two never share the device's memory, on threads of their own.
//!
//! Not on those of the processor stages: a step that waits for its other half would be given one of their jobs to
//! do meanwhile, however long.

use std::sync::mpsc::{Sender, channel};

use rayon::ThreadPoolBuilder;

use super::Job;

/// The lane of a model device.
pub struct DeviceLane {
    jobs: Sender<Job>,
}

impl DeviceLane {
    /// Starts the lane's thread; it ends when the lane is dropped and its jobs are done.
    pub fn start() -> Self {
        let (jobs, next) = channel::<Job>();
        std::thread::spawn(move || {
            // Without threads of its own a job still runs, on those that all share.
            let threads = ThreadPoolBuilder::new().thread_name(|i| format!("model {i}")).build().ok();
            for job in next {
                match &threads {
                    Some(threads) => threads.install(job),
                    None => job(),
                }
            }
        });
        Self { jobs }
    }

    /// Puts the job at the end of the queue.
    pub fn submit(&self, job: Job) {
        // The thread lives as long as this sender, and a job catches its own panics.
        let _ = self.jobs.send(job);
    }
}
