//! The kept count against a walk over everything.

use proptest::prelude::*;

use super::*;

impl Scratch {
    fn counts(&self) -> (u64, u64) {
        // Always a pass: a figure that is only asked for may be of a second ago where the last pass was slow.
        let kept = self.volume.recount(0).expect("count");
        (kept, self.volume.disk_usage().expect("walk"))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize),
    Remove(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Mkdir(usize),
    Swap(usize, usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let at = 0..12usize;
    prop_oneof![
        4 => (at.clone(), 0..80_000usize).prop_map(|(at, size)| Step::Write(at, size)),
        1 => at.clone().prop_map(Step::Remove),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => at.clone().prop_map(Step::Mkdir),
        1 => (at.clone(), at).prop_map(|(from, to)| Step::Swap(from, to)),
    ]
}

fn place(at: usize) -> String {
    ["a", "b", "a/x", "a/y", "a/x/1", "a/x/2", "b/x", "b/x/1", "c", "c/1", "c/1/2", "c/1/2/3"][at]
        .to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Whatever comes, goes and moves: what was kept in mind is what a walk finds.
    #[test]
    fn the_kept_count_is_the_walked_one(steps in prop::collection::vec(any_step(), 1..40)) {
        let scratch = Scratch::new();
        for step in steps {
            let path = |at| scratch.path(&place(at));
            // Each may be impossible where it comes, and is none then.
            match step {
                Step::Write(at, size) => {
                    let new = scratch.path("new");
                    put(&new, &vec![1; size]);
                    fs::rename(&new, path(at)).or_else(|_| fs::remove_file(&new)).ok();
                }
                Step::Remove(at) => drop(fs::remove_file(path(at)).or_else(|_| fs::remove_dir_all(path(at)))),
                Step::Rename(from, to) => drop(fs::rename(path(from), path(to))),
                Step::Link(from, to) => drop(fs::hard_link(path(from), path(to))),
                Step::Mkdir(at) => drop(fs::create_dir_all(path(at))),
                Step::Swap(one, other) => {
                    let cwd = rustix::fs::CWD;
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(cwd, path(one), cwd, path(other), flags).ok();
                }
            }
            let (kept, walked) = scratch.counts();
            prop_assert_eq!(kept, walked);
        }
    }
}

#[test]
fn a_file_that_grows_where_it_lies_is_found_by_and_by_and_then_watched() {
    let scratch = Scratch::new();
    for folder in 0..20 {
        for file in 0..50 {
            put(&scratch.path(&format!("{folder}/{file}")), b"x");
        }
    }
    // Older than the times of two changes can be told apart.
    std::thread::sleep(std::time::Duration::from_millis(120));
    scratch.volume.recount(0).expect("count");
    let grow = |path: &str, by: usize| {
        let mut file = fs::File::options().append(true).open(scratch.path(path)).expect("open");
        std::io::Write::write_all(&mut file, &vec![7; by]).expect("write");
    };
    let (before, _) = scratch.counts();
    grow("13/7", 1 << 20);
    assert_eq!(scratch.counts().0, before, "a pass over the folders does not see it");
    let rounds = (1..).find(|_| {
        let kept = scratch.volume.recount(100).expect("recount");
        kept == scratch.volume.disk_usage().expect("walk")
    });
    assert!(rounds.is_some_and(|rounds| rounds <= 10), "{rounds:?} rounds of 100 of 1000 files");
    for _ in 0..3 {
        grow("13/7", 1 << 16);
        let kept = scratch.volume.recount(100).expect("recount");
        assert_eq!(
            kept,
            scratch.volume.disk_usage().expect("walk"),
            "what grows is looked at first"
        );
    }
}

#[test]
fn a_tree_that_is_too_deep_is_counted_all_the_same() {
    let scratch = Scratch::new();
    let mut dir = scratch.path("");
    for _ in 0..250 {
        dir.push("d");
        fs::create_dir(&dir).expect("mkdir");
    }
    put(&dir.join("file"), &[1; 10_000]);
    let (kept, walked) = scratch.counts();
    assert_eq!(kept, walked);
}
