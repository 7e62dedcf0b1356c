//! The keys that name rows, and where those rows are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::fragment::FileFragment;
use lance::dataset::rowids::get_row_id_index;
use lance_core::utils::address::RowAddress;
use lance_core::utils::deletion::OffsetMapper;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Deletion files that are read at one time.
const AT_ONCE: usize = 16;

/// Which rows, in the caller's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    RowIds(Vec<u64>),
    Addresses(Vec<u64>),
    Indices(Vec<u64>),
}

impl Keys {
    /// The one that is given.
    pub(super) fn one_of(given: [(&str, Option<Self>); 3]) -> Result<Self> {
        let names = given.each_ref().map(|(name, _)| format!("{name:?}")).join(", ");
        let mut given = given.into_iter().filter_map(|(name, keys)| Some((name, keys?)));
        match (given.next(), given.next()) {
            (Some((_, keys)), None) => Ok(keys),
            (None, _) => {
                Err(Error::invalid(format!("no rows are named; give one of the options {names}")))
            }
            (Some((one, _)), Some((other, _))) => Err(Error::invalid(format!(
                "options {one:?} and {other:?} are both given; name the rows by one of {names}"
            ))),
        }
    }

    pub(super) fn values(&self) -> &[u64] {
        match self {
            Self::RowIds(values) | Self::Addresses(values) | Self::Indices(values) => values,
        }
    }

    pub(super) fn slice(&self, run: Range<usize>) -> Self {
        let values = self.values().get(run).map(<[u64]>::to_vec).unwrap_or_default();
        match self {
            Self::RowIds(_) => Self::RowIds(values),
            Self::Addresses(_) => Self::Addresses(values),
            Self::Indices(_) => Self::Indices(values),
        }
    }

    /// The column of the data that they stand in.
    pub(super) fn column(&self) -> &'static str {
        match self {
            Self::RowIds(_) => lance_core::ROW_ID,
            Self::Addresses(_) => lance_core::ROW_ADDR,
            Self::Indices(_) => "_index",
        }
    }

    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::RowIds(_) => "row_ids",
            Self::Addresses(_) => "addresses",
            Self::Indices(_) => "indices",
        }
    }

    /// One of them, for messages.
    pub(super) fn name(&self, i: usize) -> String {
        let what = match self {
            Self::RowIds(_) => "row id",
            Self::Addresses(_) => "row address",
            Self::Indices(_) => "index",
        };
        let value = self.values().get(i).copied().unwrap_or_default();
        match self {
            Self::Addresses(_) => {
                let address = RowAddress::from(value);
                let (fragment, row) = (address.fragment_id(), address.row_offset());
                format!("{what} {value} (row {row} of fragment {fragment})")
            }
            _ => format!("{what} {value}"),
        }
    }

    /// What the manifest alone tells, for an early answer.
    pub(super) async fn check_bounds(&self, dataset: &Dataset) -> Result<()> {
        match self {
            Self::Indices(values) => {
                let rows = dataset.count_rows(None).await? as u64;
                match values.iter().position(|index| *index >= rows) {
                    Some(i) => Err(self.beyond(i, dataset, rows)),
                    None => Ok(()),
                }
            }
            Self::RowIds(_) if dataset.manifest.uses_stable_row_ids() => Ok(()),
            Self::RowIds(values) | Self::Addresses(values) => {
                fragments(self, dataset, values).await.map(|_| ())
            }
        }
    }

    /// The address of each key's row; every one is that of a row that is there.
    pub(super) async fn addresses(&self, dataset: &Dataset) -> Result<Vec<u64>> {
        match self {
            Self::Indices(values) => self.by_index(dataset, values).await,
            Self::RowIds(values) => match get_row_id_index(dataset).await? {
                Some(index) => index
                    .get_many(values)?
                    .into_iter()
                    .enumerate()
                    .map(|(i, found)| found.map(u64::from).ok_or_else(|| self.gone(i, dataset)))
                    .collect(),
                None => self.live(dataset, values).await,
            },
            Self::Addresses(values) => self.live(dataset, values).await,
        }
    }

    async fn live(&self, dataset: &Dataset, values: &[u64]) -> Result<Vec<u64>> {
        let fragments = fragments(self, dataset, values).await?;
        let deletions: BTreeMap<u32, _> = futures::stream::iter(fragments)
            .map(|(id, fragment)| async move {
                Ok::<_, Error>((id, fragment.get_deletion_vector().await?))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        for (i, value) in values.iter().enumerate() {
            let address = RowAddress::from(*value);
            if let Some(Some(deleted)) = deletions.get(&address.fragment_id())
                && deleted.contains(address.row_offset())
            {
                return Err(self.gone(i, dataset));
            }
        }
        Ok(values.to_vec())
    }

    async fn by_index(&self, dataset: &Dataset, values: &[u64]) -> Result<Vec<u64>> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|i| values[*i]);
        let mut order = order.into_iter().peekable();
        let mut addresses = vec![0; values.len()];
        let mut before = 0;
        for fragment in dataset.get_fragments() {
            if order.peek().is_none() {
                break;
            }
            let end = before + fragment.count_rows(None).await? as u64;
            if order.peek().is_some_and(|i| values[*i] < end) {
                let mut mapper = fragment.get_deletion_vector().await?.map(OffsetMapper::new);
                let id = fragment.id() as u32;
                while let Some(i) = order.next_if(|i| values[*i] < end) {
                    let offset = (values[i] - before) as u32;
                    let offset = mapper.as_mut().map_or(offset, |m| m.map_offset(offset));
                    addresses[i] = RowAddress::new_from_parts(id, offset).into();
                }
            }
            before = end;
        }
        match order.next() {
            Some(i) => Err(self.beyond(i, dataset, before)),
            None => Ok(addresses),
        }
    }

    fn beyond(&self, i: usize, dataset: &Dataset, rows: u64) -> Error {
        let version = dataset.manifest.version;
        Error::invalid(format!(
            "{} is beyond the end: version {version} has {rows} rows",
            self.name(i)
        ))
    }

    fn gone(&self, i: usize, dataset: &Dataset) -> Error {
        let version = dataset.manifest.version;
        Error::invalid(format!(
            "{} is not in version {version}: it was deleted, or never was",
            self.name(i)
        ))
    }
}

/// The fragments that addresses point into; an address beyond their rows is an error.
async fn fragments(
    keys: &Keys,
    dataset: &Dataset,
    addresses: &[u64],
) -> Result<BTreeMap<u32, FileFragment>> {
    let ids: BTreeSet<u32> = addresses.iter().map(|a| RowAddress::from(*a).fragment_id()).collect();
    let mut found = BTreeMap::new();
    let mut rows = BTreeMap::new();
    for id in ids {
        if let Some(fragment) = dataset.get_fragment(id as usize) {
            rows.insert(id, fragment.physical_rows().await? as u64);
            found.insert(id, fragment);
        }
    }
    let there = |address: &u64| {
        let address = RowAddress::from(*address);
        let rows = rows.get(&address.fragment_id());
        rows.is_some_and(|rows| u64::from(address.row_offset()) < *rows)
    };
    match addresses.iter().position(|address| !there(address)) {
        Some(i) => Err(keys.gone(i, dataset)),
        None => Ok(found),
    }
}
