//! Which stage may start now: owns the state of every stage and the rules between states.
//!
//! Starts nothing itself and knows no threads, no cache, no clock: a table of states that is asked and told.

use std::collections::BTreeMap;

use crate::lane::Track;

/// A stage's number in the plan.
pub type Index = usize;

/// Where a stage is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not all of what it needs is there.
    Waiting,
    /// It may start as soon as its lane has room.
    Ready,
    /// It was handed out and has not come back.
    Running,
    /// Its result is there.
    Done,
    /// It came back without a result.
    Failed,
    /// It is off, or was not asked for.
    Out,
    /// It never started: what it needs failed, or the run was stopped.
    NotReached,
}

/// How a stage came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result.
    Done,
    /// Without one.
    Failed,
}

struct Task {
    track: Track,
    needs: Vec<Index>,
    state: State,
}

/// The states of all stages of one run.
pub struct Scheduler {
    tasks: Vec<Task>,
    room: BTreeMap<Track, usize>,
    keep_going: bool,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Start nothing more.
    Stop,
    /// Go on with whatever does not depend on it.
    KeepGoing,
}

impl Scheduler {
    /// An empty table. `room`: how many stages each track takes at once; one that is not named takes one.
    pub fn new(room: &[(Track, usize)], on_failure: OnFailure) -> Self {
        Self {
            tasks: Vec::new(),
            room: room.iter().map(|(track, n)| (*track, *n)).collect(),
            keep_going: on_failure == OnFailure::KeepGoing,
        }
    }

    /// Adds the next stage; `needs` are stages added before. A stage that is `Out` takes no part.
    pub fn add(&mut self, track: Track, needs: Vec<Index>, state: State) -> Index {
        debug_assert!(matches!(state, State::Waiting | State::Out));
        self.tasks.push(Task { track, needs, state });
        self.tasks.len() - 1
    }

    /// The state of a stage.
    pub fn state(&self, index: Index) -> State {
        self.tasks[index].state
    }

    /// The stages that start now, in the plan's order; they count as running from here on.
    pub fn start(&mut self) -> Vec<Index> {
        let mut started = Vec::new();
        for index in 0..self.tasks.len() {
            if self.tasks[index].state == State::Waiting
                && self.tasks[index].needs.iter().all(|n| self.tasks[*n].state == State::Done)
            {
                self.tasks[index].state = State::Ready;
            }
            let room = self.room.entry(self.tasks[index].track).or_insert(1);
            if self.tasks[index].state == State::Ready && *room > 0 {
                *room -= 1;
                self.tasks[index].state = State::Running;
                started.push(index);
            }
        }
        started
    }

    /// A running stage came back.
    pub fn finish(&mut self, index: Index, outcome: Outcome) {
        debug_assert_eq!(self.tasks[index].state, State::Running);
        *self.room.entry(self.tasks[index].track).or_insert(0) += 1;
        match outcome {
            Outcome::Done => self.tasks[index].state = State::Done,
            Outcome::Failed => {
                self.tasks[index].state = State::Failed;
                if self.keep_going {
                    self.cut_off();
                } else {
                    self.stop();
                }
            }
        }
    }

    /// Nothing more starts; what runs comes back by itself.
    pub fn stop(&mut self) {
        for task in &mut self.tasks {
            if matches!(task.state, State::Waiting | State::Ready) {
                task.state = State::NotReached;
            }
        }
    }

    /// Whether every stage has reached its end.
    pub fn is_over(&self) -> bool {
        !self.tasks.iter().any(|t| matches!(t.state, State::Waiting | State::Ready | State::Running))
    }

    /// Marks what can no longer get what it needs. Stages stand after what they need: one pass is enough.
    fn cut_off(&mut self) {
        for index in 0..self.tasks.len() {
            let lost = |n: &Index| matches!(self.tasks[*n].state, State::Failed | State::NotReached);
            if matches!(self.tasks[index].state, State::Waiting | State::Ready)
                && self.tasks[index].needs.iter().any(lost)
            {
                self.tasks[index].state = State::NotReached;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device as On;
    use Track::Cpu;

    #[allow(non_upper_case_globals)]
    const Device: Track = Track::Device(On::Cpu);

    /// a → b → d, a → c; b on the device.
    fn diamond(cpu: usize, on_failure: OnFailure) -> Scheduler {
        let mut s = Scheduler::new(&[(Cpu, cpu), (Device, 1)], on_failure);
        let a = s.add(Cpu, vec![], State::Waiting);
        let b = s.add(Device, vec![a], State::Waiting);
        s.add(Cpu, vec![a], State::Waiting);
        s.add(Cpu, vec![b], State::Waiting);
        s
    }

    #[test]
    fn processor_and_device_work_at_once() {
        let mut s = diamond(2, OnFailure::Stop);
        assert_eq!(s.start(), [0]);
        assert_eq!(s.start(), [0usize; 0]);
        s.finish(0, Outcome::Done);
        assert_eq!(s.start(), [1, 2]);
        s.finish(2, Outcome::Done);
        assert!(s.start().is_empty());
        s.finish(1, Outcome::Done);
        assert_eq!(s.start(), [3]);
        s.finish(3, Outcome::Done);
        assert!(s.is_over());
    }

    #[test]
    fn the_device_takes_one_at_a_time() {
        let mut s = Scheduler::new(&[(Cpu, 8), (Device, 1)], OnFailure::Stop);
        for _ in 0..3 {
            s.add(Device, vec![], State::Waiting);
        }
        for index in 0..3 {
            assert_eq!(s.start(), [index]);
            assert!(s.start().is_empty());
            s.finish(index, Outcome::Done);
        }
        assert!(s.is_over());
    }

    #[test]
    fn each_card_takes_one_at_a_time_beside_the_other() {
        let mut s = Scheduler::new(&[(Cpu, 1)], OnFailure::Stop);
        let [first, second] = [0, 1].map(|number| Track::Device(On::Cuda(number)));
        for track in [first, first, second, second, Cpu] {
            s.add(track, vec![], State::Waiting);
        }
        assert_eq!(s.start(), [0, 2, 4]);
        s.finish(2, Outcome::Done);
        assert_eq!(s.start(), [3]);
        s.finish(0, Outcome::Done);
        assert_eq!(s.start(), [1]);
    }

    #[test]
    fn a_lane_is_never_fuller_than_its_room() {
        let mut s = Scheduler::new(&[(Cpu, 2)], OnFailure::Stop);
        for _ in 0..5 {
            s.add(Cpu, vec![], State::Waiting);
        }
        assert_eq!(s.start(), [0, 1]);
        s.finish(1, Outcome::Done);
        assert_eq!(s.start(), [2]);
    }

    #[test]
    fn a_failure_stops_the_rest() {
        let mut s = diamond(2, OnFailure::Stop);
        s.start();
        s.finish(0, Outcome::Done);
        s.start();
        s.finish(1, Outcome::Failed);
        assert_eq!(s.state(2), State::Running);
        assert_eq!(s.state(3), State::NotReached);
        assert!(!s.is_over());
        s.finish(2, Outcome::Done);
        assert!(s.is_over());
    }

    #[test]
    fn keep_going_loses_only_what_depends_on_it() {
        let mut s = diamond(1, OnFailure::KeepGoing);
        let lone = s.add(Cpu, vec![], State::Waiting);
        s.start();
        s.finish(0, Outcome::Done);
        assert_eq!(s.start(), [1, 2]);
        s.finish(1, Outcome::Failed);
        assert_eq!(s.state(3), State::NotReached);
        s.finish(2, Outcome::Done);
        assert_eq!(s.start(), [lone]);
        s.finish(lone, Outcome::Done);
        assert!(s.is_over());
    }

    #[test]
    fn stages_that_are_out_take_no_part() {
        let mut s = Scheduler::new(&[(Cpu, 1)], OnFailure::Stop);
        s.add(Cpu, vec![], State::Out);
        s.add(Cpu, vec![], State::Waiting);
        assert_eq!(s.start(), [1]);
    }
}
