//! The ids of words met before: a shortcut past the tokenizers library where text is cut as GPT-2 cuts it.
//!
//! There a word's ids depend on nothing but the word, so each word is asked of the library once, and text is
//! cut here. Knows how text is cut, not how ids are found; whatever else a tokenizer does to text, this module
//! does not apply to it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex_syntax::hir::{Class, HirKind};
use tokenizers::{ModelWrapper, PostProcessor, PreTokenizerWrapper};

/// Bytes of the longest word that is kept: longer ones (a sentence of Chinese is one) hardly come again.
const LONGEST: usize = 64;
/// Words that are kept before all are forgotten: some ten megabytes a thread.
const MOST: usize = 1 << 17;

/// What is known of a tokenizer's words.
#[derive(Debug)]
pub struct Words {
    /// Whether every digit is a word of its own.
    splits_digits: bool,
    /// Whether the tokenizer puts special tokens around a text by itself.
    frames: bool,
    /// Tokens that are found in a text before it is cut.
    whole: Vec<String>,
    /// The bytes they begin with.
    beginnings: [bool; 256],
    /// What each thread that is not at work has met.
    met: Mutex<Vec<Met>>,
}

/// Words with their ids.
#[derive(Debug, Default)]
struct Met {
    places: HashMap<Box<str>, Range<u32>>,
    ids: Vec<u32>,
}

impl Words {
    /// The shortcut for a tokenizer, if it cuts text as GPT-2 does, with or without cutting digits apart first.
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let gpt2 = |step: &PreTokenizerWrapper| match step {
            PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex && !bytes.add_prefix_space,
            _ => false,
        };
        let splits_digits = match tokenizer.get_pre_tokenizer()? {
            PreTokenizerWrapper::Sequence(steps) => match steps.as_ref() {
                [PreTokenizerWrapper::Digits(digits), last] if digits.individual_digits && gpt2(last) => true,
                _ => return None,
            },
            only if gpt2(only) => false,
            _ => return None,
        };
        let draws = matches!(tokenizer.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some());
        if draws || tokenizer.get_normalizer().is_some() || tokenizer.get_encode_special_tokens() {
            return None;
        }
        let added = tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content);
        let whole: Vec<String> = added.filter(|token| !token.is_empty()).collect();
        let mut beginnings = [false; 256];
        for byte in whole.iter().filter_map(|token| token.bytes().next()) {
            beginnings[usize::from(byte)] = true;
        }
        let frames = tokenizer.get_post_processor().is_some_and(|last| last.added_tokens(false) > 0);
        Some(Self { splits_digits, frames, whole, beginnings, met: Mutex::default() })
    }

    /// The ids of a text as `tokenizer` gives them, `special` with its own special tokens; none where they
    /// can't be put together from words.
    pub fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        special: bool,
    ) -> tokenizers::Result<Option<Vec<u32>>> {
        if (special && self.frames) || self.has_whole_token(text) {
            return Ok(None);
        }
        let mut met = self.idle().pop().unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut failure = None;
        each(text, self.splits_digits, |word| {
            if failure.is_none()
                && let Err(error) = met.append(tokenizer, word, &mut ids)
            {
                failure = Some(error);
            }
        });
        self.idle().push(met);
        match failure {
            None => Ok(Some(ids)),
            Some(error) => Err(error),
        }
    }

    fn has_whole_token(&self, text: &str) -> bool {
        text.bytes().any(|byte| self.beginnings[usize::from(byte)])
            && self.whole.iter().any(|token| text.contains(token.as_str()))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Met>> {
        // A thread that panics leaves a list that is whole.
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Met {
    fn append(
        &mut self,
        tokenizer: &tokenizers::Tokenizer,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        if let Some(place) = self.places.get(word) {
            ids.extend_from_slice(&self.ids[place.start as usize..place.end as usize]);
            return Ok(());
        }
        let encoding = tokenizer.encode_fast(word, false)?;
        ids.extend_from_slice(encoding.get_ids());
        if word.len() <= LONGEST {
            if self.places.len() == MOST {
                *self = Self::default();
            }
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(encoding.get_ids());
            self.places.insert(word.into(), start..self.ids.len() as u32);
        }
        Ok(())
    }
}

/// What a character is to GPT-2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Other,
    Letter,
    Number,
    Space,
}

/// The sort of every character, as Unicode's categories have it.
static SORTS: LazyLock<Vec<Sort>> = LazyLock::new(|| {
    let mut sorts = vec![Sort::Other; char::MAX as usize + 1];
    for (class, sort) in [(r"\p{L}", Sort::Letter), (r"\p{N}", Sort::Number), (r"\s", Sort::Space)] {
        let hir = regex_syntax::parse(class).map(|hir| hir.into_kind());
        if let Ok(HirKind::Class(Class::Unicode(class))) = hir {
            for range in class.ranges() {
                sorts[range.start() as usize..=range.end() as usize].fill(sort);
            }
        }
    }
    sorts
});

/// Calls `take` with each word of a text, in order.
fn each<'t>(text: &'t str, splits_digits: bool, mut take: impl FnMut(&'t str)) {
    let sorts = SORTS.as_slice();
    if !splits_digits {
        return each_word(text, sorts, &mut take);
    }
    let mut from = 0;
    // What counts as a digit to be cut apart is Rust's to say: so it is in the library.
    for (at, digit) in text.match_indices(char::is_numeric) {
        each_word(&text[from..at], sorts, &mut take);
        take(digit);
        from = at + digit.len();
    }
    each_word(&text[from..], sorts, &mut take);
}

/// Cuts as the regular expression
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` does.
fn each_word<'t>(text: &'t str, sorts: &[Sort], take: &mut impl FnMut(&'t str)) {
    let sort = |c: char| sorts[c as usize];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match (first, sort(first)) {
            ('\'', _) if let Some(length) = contraction(rest) => length,
            (' ', _) if let Some(next) = rest[1..].chars().next().map(sort).filter(|s| *s != Sort::Space) => {
                1 + run(&rest[1..], |c| sort(c) == next).len()
            }
            (_, Sort::Space) => {
                let spaces = run(rest, |c| sort(c) == Sort::Space);
                let last = spaces.chars().next_back().map_or(0, char::len_utf8);
                // The last one of several belongs to what follows.
                match spaces.len() < rest.len() && spaces.len() > last {
                    true => spaces.len() - last,
                    false => spaces.len(),
                }
            }
            (_, own) => run(rest, |c| sort(c) == own).len(),
        };
        let (word, after) = rest.split_at(end);
        take(word);
        rest = after;
    }
}

/// The characters at the beginning of a text for which something holds.
fn run(text: &str, holds: impl Fn(char) -> bool) -> &str {
    let end = text.find(|c| !holds(c)).unwrap_or(text.len());
    &text[..end]
}

/// The length of an English contraction at the beginning of a text.
fn contraction(text: &str) -> Option<usize> {
    let endings = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    endings.into_iter().find(|ending| text.starts_with(ending)).map(str::len)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::pre_tokenizers::digits::Digits;
    use tokenizers::pre_tokenizers::sequence::Sequence;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(text: &str, splits_digits: bool) -> Vec<&str> {
        let mut words = Vec::new();
        each(text, splits_digits, |word| words.push(word));
        words
    }

    /// As the library cuts.
    fn pieces(text: &str, splits_digits: bool) -> Vec<&str> {
        let bytes = ByteLevel::new(false, true, true);
        let mut cut = PreTokenizedString::from(text);
        match splits_digits {
            true => {
                Sequence::new(vec![Digits::new(true).into(), bytes.into()]).pre_tokenize(&mut cut).unwrap()
            }
            false => bytes.pre_tokenize(&mut cut).unwrap(),
        }
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect()
    }

    fn agree(text: &str) {
        for splits_digits in [false, true] {
            assert_eq!(words(text, splits_digits), pieces(text, splits_digits), "{text:?}");
        }
    }

    #[test]
    fn text_is_cut_as_the_library_cuts_it() {
        for text in [
            "",
            " ",
            "I'll say it's 'fine', won't we've I'M he'd ''s '",
            "  two  blanks \n\n new\tline \r\n  x   ",
            "3rd 12,345.67 ²³ Ⅷ ½ x1y2 a  1  b",
            "你好，世界 🙂🙂 naïve e\u{301} \u{3000}全角\u{a0}nbsp\u{200b}zwsp\u{85}nel",
            "\u{1c}\u{1f} \u{b}\u{c} a\u{2028}b",
        ] {
            agree(text);
        }
    }

    #[test]
    fn every_character_is_of_the_sort_it_is_to_the_library() {
        // Of the long runs of ideographs, syllables and what is not assigned, some.
        let is_long_run = |c: u32| c >= 0x3400;
        let all = (0..=char::MAX as u32)
            .filter(|c| !is_long_run(*c) || c % 61 == 0 || (0xf900..0x11000).contains(c));
        let all: Vec<char> = all.filter_map(char::from_u32).collect();
        for some in all.chunks(32) {
            // A letter or a digit goes on with its own sort only.
            let text: String = some.iter().flat_map(|c| ['a', *c, '1', *c]).collect();
            assert_eq!(words(&text, false), pieces(&text, false), "{text:?}");
        }
    }

    #[test]
    fn chance_mixes_are_cut_alike() {
        let letters =
            ["a", "é", "你", "1", "²", "'", "s", "ll", " ", "  ", "\n", "\u{3000}", "!", "🙂", "\u{301}"];
        let mut state = 1u64;
        let mut chance = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for _ in 0..2000 {
            let length = chance() % 24;
            let text: String = (0..length).map(|_| letters[chance() % letters.len()]).collect();
            agree(&text);
        }
    }

    #[test]
    fn ids_are_the_librarys_on_the_data_at_hand() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/embedded/model");
        for folder in [embedded, shared.join("reference/gpt2")] {
            let Ok(tokenizer) = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")) else {
                eprintln!("skipped: no {}", folder.display());
                continue;
            };
            let words = Words::of(&tokenizer).unwrap();
            let mut seen = 0;
            for file in ["alpaca_zh_sample", "raft_twitter_complaints", "eli5_shaped"] {
                let text = fs::read_to_string(shared.join(format!("data/{file}.jsonl"))).unwrap_or_default();
                for line in text.lines().step_by(16) {
                    let whole = tokenizer.encode_fast(line, false).unwrap();
                    let ids = words.encode(&tokenizer, line, false).unwrap();
                    assert!(ids.is_none_or(|ids| ids == whole.get_ids()), "{line}");
                    seen += 1;
                }
            }
            println!("{seen} lines");
        }
    }

    #[test]
    fn a_text_with_a_special_token_is_left_to_the_library() {
        let tokenizer = crate::tokenizer::testing::bytes();
        let words = Words::of(&tokenizer).unwrap();
        assert_eq!(words.encode(&tokenizer, "a</s>", false).unwrap(), None);
        let ids = words.encode(&tokenizer, "a</ s>", false).unwrap().unwrap();
        assert_eq!(ids, tokenizer.encode_fast("a</ s>", false).unwrap().get_ids());
    }
}
