//! Input beyond all measure: thousands of faults, ages and times without end, text that a terminal would act on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::time::{Duration, Instant};

use project::Project;

/// Of any kind of fault, thousands are looked through in time that grows with their number; the first are shown.
#[test]
fn thousands_of_faults_take_no_time_and_a_hundred_are_shown() {
    const N: usize = 8000;
    let each = |fault: &dyn Fn(usize) -> String| (0..N).map(fault).collect::<Vec<_>>().join(", ");
    let lines = |n: usize, line: &dyn Fn(usize) -> String| (0..n).map(line).collect::<String>();
    let command = "uses: command, with: { run: x, outputs: { x: { path: x } } }";
    let with = |more: String| {
        format!(
            "pipeline: x\nstages: {{ a: {{ uses: command, with: {{ run: x, outputs: {{ x: {{ path: x }} }}, {more} }} }} }}"
        )
    };
    let cases = [
        (
            "params that name none",
            format!(
                "pipeline: x\nparams: {{ {} }}\nstages: {{ a: {{ {command} }} }}",
                each(&|i| format!("p{i}: '${{params.q{i}}}'"))
            ),
        ),
        (
            "keys",
            format!("pipeline: x\nstages: {{ a: {{ {command} }} }}\n{}", lines(N, &|i| format!("k{i}: 1\n"))),
        ),
        ("keys of a stage's `with`", with(each(&|i| format!("k{i}: 1")))),
        (
            "keys given twice",
            format!(
                "pipeline: x\nstages: {{ a: {{ {command} }} }}\nparams: {{ {}, p: 1 }}",
                each(&|_| "p: 1".into())
            ),
        ),
        (
            "stages that are not there",
            format!(
                "pipeline: x\nstages: {{ a: {{ inputs: {{ {} }}, {command} }} }}",
                each(&|i| format!("i{i}: missing{i}"))
            ),
        ),
        (
            "keys of a param that are not there",
            format!(
                "pipeline: x\nparams: {{ m: {{ {} }} }}\nstages: {{ a: {{ uses: command, with: {{ run: x, \
                 outputs: {{ x: {{ path: x }} }}, env: {{ {} }} }} }} }}",
                each(&|i| format!("k{i}: 1")),
                each(&|i| format!("v{i}: '${{params.m.x{i}}}'"))
            ),
        ),
        (
            "variables that are not set",
            with(format!("env: {{ {} }}", each(&|i| format!("v{i}: '${{env.NOT_{i}}}'")))),
        ),
        (
            "outputs",
            with(String::new()).replace("x: { path: x }", &each(&|i| format!("o{i}: {{ path: /x{i} }}"))),
        ),
        (
            "profiles",
            format!(
                "pipeline: x\nparams: {{ a: 1 }}\nprofiles: {{ q: {{ {} }} }}\nstages: {{ a: {{ {command} }} }}",
                each(&|i| format!("z{i}: 1"))
            ),
        ),
    ];
    for (what, manifest) in cases {
        let project = Project::new();
        project.write("m.yaml", &manifest);
        let begin = Instant::now();
        let ran = project.pipe(&["check", "m.yaml"]);
        let time = begin.elapsed();
        assert_eq!(ran.code, Some(2), "{what}");
        assert_eq!(ran.stderr.matches("--> m.yaml:").count(), 100, "{what}: {}", ran.stderr);
        // Params that nothing refers to are warned of beside.
        let rest = ran.stderr.rsplit_once("\n\n… and 7,900 more").unwrap_or_else(|| panic!("{what}")).1;
        let warnings = ["", ", and 1 warning", ", and 8,000 warnings"];
        let rests = warnings.map(|warnings| format!("{warnings}\nm.yaml: 8,000 errors\n"));
        assert!(rests.iter().any(|end| rest == end), "{what}: {rest}");
        assert!(ran.stderr.len() < 1_000_000, "{what}: {} bytes", ran.stderr.len());
        // Each takes a fifth of a second; with the square of the number it was 40.
        assert!(time < Duration::from_secs(10), "{what}: {time:?}");
    }
}

#[test]
fn circles_of_thousands_are_one_fault_that_can_be_read() {
    const N: usize = 3300;
    let project = Project::new();
    let stage = |i: usize| format!("  s{i}: {{ uses: relabel, inputs: {{ dataset: s{} }} }}\n", (i + 1) % N);
    project.write("m.yaml", &format!("pipeline: x\nstages:\n{}", (0..N).map(stage).collect::<String>()));
    let ran = project.pipe(&["check", "m.yaml"]);
    assert_eq!(ran.code, Some(2));
    let circle = ran.stderr.lines().find(|line| line.contains("wait for each other")).unwrap();
    assert!(
        circle.contains(" -> … 3,281 more … -> ") || circle.contains(" -> … 3281 more … -> "),
        "{circle}"
    );
    assert!(circle.len() < 500 && ran.stderr.len() < 200_000, "{circle}");
}

#[test]
fn errors_are_shown_before_warnings() {
    let project = Project::new();
    let params: String = (0..300).map(|i| format!("  p{i}: 1\n")).collect();
    project.write("m.yaml", &format!("pipeline: x\nparams:\n{params}stages:\n  a: {{ uses: nothing }}\n"));
    let ran = project.pipe(&["check", "m.yaml"]);
    assert!(ran.stderr.contains("error: there is no stage kind `nothing`"), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("\n\n… and 201 more\nm.yaml: 1 error\n"), "{}", ran.stderr);
}

#[test]
fn ages_and_times_beyond_all_measure_are_errors() {
    let project = Project::new();
    let huge = "9".repeat(400) + "d";
    for age in ["99999999999999999999d", "1000000000000000000000000h", &huge] {
        for arguments in [&["cache", "gc", "--age", age][..], &["cache", "gc", "--size", "0", "--grace", age]]
        {
            let ran = project.pipe(arguments);
            assert_eq!(
                (ran.code, ran.stderr.as_str()),
                (
                    Some(2),
                    format!("error: `{age}` is not an age: it is longer than time can be told\n").as_str()
                )
            );
        }
        assert_eq!(project.pipe(&["runs", "rm", "--older-than", age]).code, Some(2));
    }
    assert_eq!(project.pipe(&["cache", "gc", "--age", "9999999d"]).code, Some(0));
    assert_eq!(project.pipe(&["runs", "rm", "--older-than", "99999999999d"]).code, Some(0));
    for timeout in ["1e300", "99999999999999999999h", "1e18", "inf", "nan", "-1", "0", "4000d"] {
        project.write(
            "m.yaml",
            &format!(
                "pipeline: x\nstages:\n  a: {{ uses: command, timeout: {timeout}, with: {{ run: touch x, \
                 outputs: {{ x: {{ path: x }} }} }} }}\n"
            ),
        );
        let ran = project.pipe(&["run", "m.yaml"]);
        assert_eq!(ran.code, Some(2), "{timeout}: {}", ran.stderr);
        assert!(ran.stderr.contains("15m or 2h, at most 10 years, not `"), "{}", ran.stderr);
    }
    project.edit("m.yaml", "4000d", "80000h");
    assert_eq!(project.pipe(&["run", "m.yaml"]).code, Some(0));
}

#[test]
fn what_a_terminal_would_act_on_is_shown_as_text() {
    let project = Project::new();
    project.write(
        "m.yaml",
        r#"pipeline: "x\u202ey"
description: "\e[31m"
params: { p: "\e]0;title\a" }
stages:
  a:
    uses: command
    with:
      run: |
        printf 'red \033[31m, back \b, csi \302\2332J, turned \342\200\256around\n'
        touch x; exit 3
      outputs: { x: { path: x } }
"#,
    );
    let acts = |c: char| {
        c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    for arguments in [
        &["run", "m.yaml"][..],
        &["run", "m.yaml", "--json"],
        &["show"],
        &["show", "latest", "a"],
        &["runs"],
        &["plan", "m.yaml"],
        &["graph", "m.yaml"],
        &["stages", "\u{1b}[31m"],
        &["show", "\u{1b}[31m"],
        &["check", "\u{1b}[31m.yaml"],
        &["run", "m.yaml", "\u{9b}31m"],
    ] {
        let ran = project.pipe(arguments);
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(acts), "{arguments:?}: {text:?}");
        }
    }
    let run = project.pipe(&["run", "m.yaml"]);
    let shown = r"red ␛[31m, back ␈, csi \u{9b}2J, turned \u{202e}around";
    assert!(run.stderr.contains(shown), "{}", run.stderr);
    let json = project.pipe(&["run", "m.yaml", "--json"]).stdout;
    let said = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let notes: Vec<String> =
        said.filter(|e| e["event"] == "stage_note").map(|e| e["text"].as_str().unwrap().into()).collect();
    assert!(
        notes.iter().any(|text| text.contains("red \u{1b}[31m") && text.contains("\u{202e}around")),
        "{notes:?}"
    );
    // The place of a fault, its line and the name of its file come from the same hands.
    project.write("\u{1b}[2J.yaml", "pipeline: x\nstages: { a: { uses: \"\u{202e}b\", \"\\e[31m\": 1 } }\n");
    let check = project.pipe(&["check", "\u{1b}[2J.yaml"]);
    assert_eq!(check.code, Some(2));
    assert!(!check.stderr.contains(acts), "{:?}", check.stderr);
}
