//! `pipe devices`: what model stages can run on, and why not on what is missing.

use serde_json::json;

use super::table;
use crate::device::{Card, Device, Seen, too_old};

/// For a person.
pub fn text(seen: &Seen) -> String {
    let processor = &seen.processor;
    let cores = if processor.cores == 1 { "1 core".into() } else { format!("{} cores", processor.cores) };
    let mut about = vec![processor.name.clone(), cores];
    about.extend(processor.avx512.then(|| "AVX-512".into()));
    about.extend(processor.avx512_bf16.then(|| "AVX512-BF16".into()));
    about.extend(processor.amx.then(|| "AMX".into()));
    let mut rows = vec![vec!["cpu".into(), about.join(", ")]];
    match &seen.cards {
        Ok(cards) => rows.extend(cards.iter().map(|card| {
            let refused =
                if card.is_too_old() { format!("; not used: {}", too_old(card)) } else { String::new() };
            vec![Device::Cuda(card.number).to_string(), format!("{}{refused}", about_card(card))]
        })),
        Err(reason) => rows.push(vec!["cuda".into(), format!("none: {reason}")]),
    }
    rows.push(vec!["auto".into(), format!("means {} here", seen.auto())]);
    table(&rows)
}

fn about_card(card: &Card) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let (major, minor) = card.capability;
    let free = card.free.map(|free| format!(", {:.1} GiB of it free", gib(free))).unwrap_or_default();
    format!("{}, {:.1} GiB{free}, compute capability {major}.{minor}", card.name, gib(card.memory))
}

/// For a program: a line for each device, and one for what is missing.
pub fn json(seen: &Seen) -> String {
    let auto = seen.auto();
    let processor = &seen.processor;
    let mut lines = vec![json!({
        "device": "cpu", "usable": true, "auto": auto == Device::Cpu, "name": processor.name,
        "cores": processor.cores, "avx512": processor.avx512, "avx512_bf16": processor.avx512_bf16, "amx": processor.amx,
    })];
    match &seen.cards {
        Ok(cards) => lines.extend(cards.iter().map(|card| {
            let device = Device::Cuda(card.number);
            let (major, minor) = card.capability;
            let mut line = json!({
                "device": device.to_string(), "usable": !card.is_too_old(), "auto": auto == device,
                "name": card.name, "memory": card.memory, "free": card.free,
                "compute_capability": format!("{major}.{minor}"),
            });
            if card.is_too_old() {
                line["why"] = json!(too_old(card));
            }
            line
        })),
        Err(reason) => {
            lines
                .push(json!({ "device": "cuda", "usable": false, "auto": false, "why": reason.to_string() }));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{NoCards, Processor};

    fn seen(cards: Result<Vec<Card>, NoCards>) -> Seen {
        let processor = Processor {
            name: "Some Processor".into(),
            cores: 2,
            avx512: true,
            avx512_bf16: true,
            amx: false,
        };
        Seen { processor, cards }
    }

    fn cards() -> Vec<Card> {
        let card = |number, name: &str, capability| Card {
            number,
            name: name.into(),
            capability,
            memory: 80 << 30,
            free: Some(79 << 30),
        };
        vec![card(0, "Old One", (7, 5)), card(1, "New One", (9, 0))]
    }

    #[test]
    fn a_build_without_cuda_says_how_to_get_one_with_it() {
        let seen = seen(Err(NoCards::NotBuilt));
        assert_eq!(
            text(&seen),
            "cpu   Some Processor, 2 cores, AVX-512, AVX512-BF16\n\
             cuda  none: this build of pipe has no CUDA: use `cpu`, or build with \
             `cargo build --release --features cuda`\n\
             auto  means cpu here\n"
        );
        assert_eq!(
            json(&seen),
            "{\"amx\":false,\"auto\":true,\"avx512\":true,\"avx512_bf16\":true,\"cores\":2,\"device\":\"cpu\",\
             \"name\":\"Some Processor\",\"usable\":true}\n\
             {\"auto\":false,\"device\":\"cuda\",\"usable\":false,\"why\":\"this build of pipe has no CUDA: use `cpu`, \
             or build with `cargo build --release --features cuda`\"}\n"
        );
    }

    #[test]
    fn cards_are_listed_with_what_they_have_and_why_one_is_not_used() {
        let seen = seen(Ok(cards()));
        assert_eq!(
            text(&seen),
            "cpu     Some Processor, 2 cores, AVX-512, AVX512-BF16\n\
             cuda:0  Old One, 80.0 GiB, 79.0 GiB of it free, compute capability 7.5; not used: Old One has compute \
             capability 7.5, 8.0 is needed\n\
             cuda:1  New One, 80.0 GiB, 79.0 GiB of it free, compute capability 9.0\n\
             auto    means cuda:1 here\n"
        );
        assert_eq!(
            json(&seen).lines().last(),
            Some(
                "{\"auto\":true,\"compute_capability\":\"9.0\",\"device\":\"cuda:1\",\"free\":84825604096,\
                 \"memory\":85899345920,\"name\":\"New One\",\"usable\":true}"
            )
        );
    }
}
