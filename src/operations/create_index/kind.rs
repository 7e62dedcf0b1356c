//! The index types: Lance's names, the parameters they take, and how Lance calls each.

use lance_index::IndexType;
use lance_index::registry::plugin_name_from_details_url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode, Result};

/// An index type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Btree,
    Bitmap,
    LabelList,
    Inverted,
    Ngram,
    Zonemap,
    Bloomfilter,
    Rtree,
    Json,
    Fm,
    MinhashLsh,
    IvfFlat,
    IvfPq,
    IvfSq,
    IvfRq,
    IvfHnswFlat,
    IvfHnswPq,
    IvfHnswSq,
}

/// A type's name, Lance's own type, the name of Lance's plugin, and the parameters.
struct Entry(Kind, &'static str, IndexType, &'static str, &'static [&'static [&'static str]]);

const IVF: &[&str] = &[
    "metric",
    "num_partitions",
    "target_partition_size",
    "sample_rate",
    "max_iters",
    "streaming_sample_rate",
    "streaming_coreset_rate",
    "streaming_refine_passes",
];
const HNSW: &[&str] = &["max_level", "m", "ef_construction"];
const PQ: &[&str] = &["num_sub_vectors", "num_bits", "kmeans_redos"];
const BITS: &[&str] = &["num_bits"];
const TEXT: &[&str] = &[
    "analyzer",
    "document_granularity",
    "lance_tokenizer",
    "base_tokenizer",
    "language",
    "with_position",
    "max_token_length",
    "lower_case",
    "stem",
    "remove_stop_words",
    "custom_stop_words",
    "ascii_folding",
    "min_ngram_length",
    "max_ngram_length",
    "prefix_only",
    "block_size",
    "split_identifiers",
    "split_on_numerics",
    "preserve_original",
    "index_operators",
    "memory_limit",
    "num_workers",
    "format_version",
];

const ENTRIES: &[Entry] = &[
    Entry(Kind::Btree, "BTREE", IndexType::BTree, "btree", &[&["zone_size"]]),
    Entry(Kind::Bitmap, "BITMAP", IndexType::Bitmap, "bitmap", &[]),
    Entry(Kind::LabelList, "LABEL_LIST", IndexType::LabelList, "labellist", &[]),
    Entry(Kind::Inverted, "INVERTED", IndexType::Inverted, "inverted", &[TEXT]),
    Entry(Kind::Ngram, "NGRAM", IndexType::NGram, "ngram", &[]),
    Entry(
        Kind::Zonemap,
        "ZONEMAP",
        IndexType::ZoneMap,
        "zonemap",
        &[&["rows_per_zone", "use_seeds"]],
    ),
    Entry(
        Kind::Bloomfilter,
        "BLOOMFILTER",
        IndexType::BloomFilter,
        "bloomfilter",
        &[&["number_of_items", "probability"]],
    ),
    Entry(Kind::Rtree, "RTREE", IndexType::RTree, "rtree", &[&["page_size"]]),
    Entry(
        Kind::Json,
        "JSON",
        IndexType::Scalar,
        "json",
        &[&["path", "target_index_type", "target_index_parameters", "target_data_type"]],
    ),
    Entry(Kind::Fm, "FM", IndexType::Fm, "fm", &[]),
    Entry(
        Kind::MinhashLsh,
        "MINHASHLSH",
        IndexType::MinHashLsh,
        "minhashlsh",
        &[&["num_hashes", "num_bands", "shingle_size", "tokenizer"]],
    ),
    Entry(Kind::IvfFlat, "IVF_FLAT", IndexType::IvfFlat, "vector", &[IVF]),
    Entry(Kind::IvfPq, "IVF_PQ", IndexType::IvfPq, "vector", &[IVF, PQ]),
    Entry(Kind::IvfSq, "IVF_SQ", IndexType::IvfSq, "vector", &[IVF, BITS]),
    Entry(Kind::IvfRq, "IVF_RQ", IndexType::IvfRq, "vector", &[IVF, BITS]),
    Entry(Kind::IvfHnswFlat, "IVF_HNSW_FLAT", IndexType::IvfHnswFlat, "vector", &[IVF, HNSW]),
    Entry(Kind::IvfHnswPq, "IVF_HNSW_PQ", IndexType::IvfHnswPq, "vector", &[IVF, HNSW, PQ]),
    Entry(Kind::IvfHnswSq, "IVF_HNSW_SQ", IndexType::IvfHnswSq, "vector", &[IVF, HNSW, BITS]),
];

/// Another name of one of them.
const FTS: &str = "FTS";

impl Kind {
    /// By Lance's name, in any case.
    pub fn parse(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Err(Error::invalid("option \"index_type\" is missing"));
        }
        if name.eq_ignore_ascii_case(FTS) {
            return Ok(Self::Inverted);
        }
        let known = ENTRIES.iter().find(|Entry(_, known, ..)| known.eq_ignore_ascii_case(name));
        known.map(|Entry(kind, ..)| *kind).ok_or_else(|| {
            let names: Vec<&str> = ENTRIES.iter().map(|Entry(_, name, ..)| *name).collect();
            Error::new(
                ErrorCode::NotSupported,
                format!("option \"index_type\": {name:?} is not among {}, {FTS}", names.join(", ")),
            )
        })
    }

    /// The scalar type whose segments carry details of this type; vectors have one for all of them.
    pub(crate) fn of_details(type_url: &str) -> Option<Self> {
        let plugin = plugin_name_from_details_url(type_url);
        let known = ENTRIES.iter().find(|Entry(_, _, _, known, _)| *known == plugin);
        known.map(|Entry(kind, ..)| *kind).filter(|kind| !kind.is_vector())
    }

    fn entry(self) -> &'static Entry {
        let known = ENTRIES.iter().find(|Entry(kind, ..)| *kind == self);
        known.unwrap_or(&ENTRIES[0])
    }

    /// Lance's name.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    pub(crate) fn lance(self) -> IndexType {
        self.entry().2
    }

    /// What Lance calls the type's plugin, and the stem of its details' type.
    pub(crate) fn plugin(self) -> &'static str {
        self.entry().3
    }

    /// The names of its parameters.
    pub(crate) fn params(self) -> impl Iterator<Item = &'static str> {
        self.entry().4.iter().copied().flatten().copied()
    }

    pub(crate) fn is_vector(self) -> bool {
        self.plugin() == "vector"
    }

    pub(crate) fn has_pq(self) -> bool {
        matches!(self, Self::IvfPq | Self::IvfHnswPq)
    }

    pub(crate) fn has_sq(self) -> bool {
        matches!(self, Self::IvfSq | Self::IvfHnswSq)
    }

    pub(crate) fn has_hnsw(self) -> bool {
        matches!(self, Self::IvfHnswFlat | Self::IvfHnswPq | Self::IvfHnswSq)
    }

    /// Rows of a segment where nothing is said. A text takes as long as many numbers; a vector too, and
    /// partitions that lie in several segments are no more to search, but graphs are.
    pub(crate) fn rows_per_segment(self) -> u64 {
        match self {
            Self::Inverted | Self::Fm | Self::MinhashLsh | Self::Ngram => 500_000,
            kind if kind.is_vector() && !kind.has_hnsw() => 500_000,
            _ => 2_500_000,
        }
    }

    /// Whether, on a dataset with stable row ids, a segment answers for rows that have left its fragments
    /// as soon as another segment covers where they went: with what they were, or twice.
    pub(crate) fn clings(self) -> bool {
        matches!(self, Self::Bitmap | Self::LabelList | Self::Inverted)
    }

    /// Whether a segment goes on answering by what it holds of fragments that it covers no more, as soon as
    /// another segment covers them.
    pub(crate) fn lingers(self) -> bool {
        !self.is_vector() && !matches!(self, Self::Bloomfilter | Self::Ngram)
    }

    /// Why segments of the type may not be merged into one.
    pub(crate) fn unmergeable(self) -> Option<&'static str> {
        match self {
            Self::IvfSq | Self::IvfHnswSq => Some(
                "each segment scales its vectors by bounds of its own, and a merge would read the \
                 codes of all by the bounds of one",
            ),
            Self::Json => Some("Lance has no merge for it"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found_by_its_name() {
        for Entry(kind, name, ..) in ENTRIES {
            assert_eq!(Kind::parse(&name.to_lowercase()).unwrap(), *kind);
            assert_eq!(kind.name(), *name);
        }
        assert_eq!(Kind::parse("fts").unwrap(), Kind::Inverted);
        assert_eq!(Kind::of_details("/lance.table.BTreeIndexDetails"), Some(Kind::Btree));
        assert_eq!(Kind::of_details("/lance.index.pb.VectorIndexDetails"), None);
    }
}
