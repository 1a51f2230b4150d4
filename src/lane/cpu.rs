//! Processor stages: a thread each, whose inner loops share rayon's pool.
//!
//! The thread is not one of the pool's: a pool thread that waits for its inner loop picks up other work, and
//! a stage picked up there could wait for a lock that the stage beneath it holds.

use super::Job;

/// The lane of processor stages.
pub struct CpuLane;

impl CpuLane {
    /// Runs the job beside whatever runs already.
    pub fn submit(&self, job: Job) {
        std::thread::spawn(job);
    }
}
