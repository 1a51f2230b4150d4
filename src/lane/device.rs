//! Model stages: one thread, one at a time, so that two never share the device's memory.

use std::sync::mpsc::{Sender, channel};

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
            for job in next {
                job();
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
