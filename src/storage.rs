//! Storage options of a call: those of every place, and those of single bases of a dataset, which may
//! be another provider's, in another account.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use lance::dataset::builder::DatasetBuilder;
use lance_io::object_store::{
    ObjectStoreParams, StorageOptionsAccessor, WrappingObjectStore, parse_base_scoped_key,
    resolve_base_scoped_options,
};
use lance_table::format::BasePath;

use crate::error::{Error, Result};
use crate::marks::through_store;

type Options = BTreeMap<String, String>;

/// Lance's storage options (credentials, endpoint, region) for one call. Never stored, never logged.
///
/// A base of a dataset has these options too, unless it has some of its own, which then are all that it
/// has: nothing of one account is sent to another.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct StorageOptions {
    /// As Lance takes them: `base_<id>.<option>` holds for the base of that id, beside the others.
    shared: Options,
    /// By the path of the base, without a `/` at its end; none is empty.
    bases: BTreeMap<String, Options>,
}

/// Begins the name of an option that is a base's own: `base:<path>:<option>`.
const BASE: &str = "base:";

impl StorageOptions {
    /// From names and values, where `base:<path>:<option>` is an option of the base that is registered
    /// under this path.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a name that begins with `base:` and is not of that form.
    pub fn new(given: BTreeMap<String, String>) -> Result<Self> {
        let mut options = Self::default();
        for (name, value) in given {
            let Some(rest) = name.strip_prefix(BASE) else {
                options.shared.insert(name, value);
                continue;
            };
            match rest.rsplit_once(':') {
                // `s3://bucket` without an option ends in what looks like one.
                Some((path, option))
                    if !path.is_empty() && !option.is_empty() && !option.contains('/') =>
                {
                    crate::dataset::refuse_secrets(path)?;
                    let base = options.bases.entry(trimmed(path).to_owned()).or_default();
                    base.insert(option.to_owned(), value);
                }
                _ => {
                    crate::dataset::refuse_secrets(rest)?;
                    return Err(Error::invalid(format!(
                        "storage option {name:?} is not of the form base:<path of the base>:<option>"
                    )));
                }
            }
        }
        Ok(options)
    }

    /// Those that hold for every place that is no base.
    pub fn shared(&self) -> BTreeMap<String, String> {
        let shared = self.shared.clone().into_iter().collect();
        resolve_base_scoped_options(&shared, None).into_iter().collect()
    }

    /// Lance's parameters for a place that is no base.
    pub(crate) fn params(&self) -> ObjectStoreParams {
        params(&self.shared).scoped_to_base(None).into_owned()
    }

    /// Lance's parameters for a base.
    pub(crate) fn base_params(&self, base: &BasePath) -> ObjectStoreParams {
        match self.bases.get(trimmed(&base.path)) {
            Some(own) => params(own),
            None => params(&self.shared).scoped_to_base(Some(base.id)).into_owned(),
        }
    }

    /// What Lance's writer takes for bases that have options of their own, by their path.
    pub(crate) fn own_params(
        &self,
        wrapper: Option<&Arc<dyn WrappingObjectStore>>,
    ) -> HashMap<String, ObjectStoreParams> {
        let mut by_path = HashMap::new();
        for (path, own) in &self.bases {
            let mut params = params(own);
            params.object_store_wrapper = wrapper.cloned();
            // Lance looks for the path as it is registered.
            for path in [path.clone(), format!("{path}/"), through_store(path)] {
                by_path.insert(path, params.clone());
            }
        }
        by_path
    }

    /// Opens a dataset with these.
    pub(crate) fn builder(&self, uri: &str) -> DatasetBuilder {
        let builder = DatasetBuilder::from_uri(uri).with_store_params(store_params(self));
        self.own_params(None)
            .into_iter()
            .fold(builder, |builder, (path, params)| builder.with_base_store_params(path, params))
    }

    /// Whether any option is for one base only.
    pub(crate) fn any_base(&self) -> bool {
        !self.bases.is_empty() || self.scoped().next().is_some()
    }

    /// Refuse options of a base that is none of these: nothing would ever look at them.
    pub(crate) fn check_bases<'a>(
        &self,
        registered: impl IntoIterator<Item = &'a BasePath>,
    ) -> Result<()> {
        let registered: Vec<&BasePath> = registered.into_iter().collect();
        let known = || {
            let mut paths: Vec<_> = registered.iter().map(|base| base.path.as_str()).collect();
            paths.sort_unstable();
            paths.dedup();
            match paths.is_empty() {
                true => "the dataset has none".to_owned(),
                false => format!("the dataset has {}", paths.join(", ")),
            }
        };
        for path in self.bases.keys() {
            if !registered.iter().any(|base| trimmed(&base.path) == path) {
                return Err(Error::invalid(format!(
                    "storage options for the base {path}: it is no registered base; {}",
                    known()
                )));
            }
        }
        for (id, name) in self.scoped() {
            if !registered.iter().any(|base| base.id == id) {
                return Err(Error::invalid(format!(
                    "storage option {name:?}: there is no registered base of the id {id}; {}",
                    known()
                )));
            }
        }
        Ok(())
    }

    /// Options of Lance's form for a single base: its id, and the option's name.
    fn scoped(&self) -> impl Iterator<Item = (u32, &str)> {
        self.shared.keys().filter_map(|name| Some((parse_base_scoped_key(name)?.0, name.as_str())))
    }

    /// Every option by its name.
    fn all(&self) -> impl Iterator<Item = (String, &str)> {
        let shared = self.shared.iter().map(|(name, value)| (name.clone(), value.as_str()));
        let of = |(path, own)| {
            let own: &Options = own;
            own.iter().map(move |(name, value)| (format!("{BASE}{path}:{name}"), value.as_str()))
        };
        shared.chain(self.bases.iter().flat_map(of))
    }
}

/// The names only: the values may be secrets.
impl fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all().map(|(name, _)| name)).finish()
    }
}

fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

fn params(options: &Options) -> ObjectStoreParams {
    let mut params = ObjectStoreParams::default();
    if !options.is_empty() {
        let options: HashMap<String, String> = options.clone().into_iter().collect();
        params.storage_options_accessor =
            Some(Arc::new(StorageOptionsAccessor::with_static_options(options)));
    }
    params
}

/// Lance's parameters for a dataset, out of which it takes those of bases without options of their own.
pub(crate) fn store_params(options: &StorageOptions) -> ObjectStoreParams {
    params(&options.shared)
}

/// An endpoint that is no URL would panic in the store's own code.
pub(crate) fn check_options(options: &StorageOptions) -> Result<()> {
    let ours = std::env::vars().filter(|(name, _)| name.starts_with("AWS_ENDPOINT"));
    let given = options.all().map(|(name, value)| (name, value.to_owned()));
    for (name, value) in given.chain(ours) {
        let endpoint = name.to_ascii_lowercase();
        let endpoint = endpoint.ends_with("endpoint") || endpoint.ends_with("endpoint_url");
        let known = |url: url::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        if endpoint && !url::Url::parse(&value).is_ok_and(known) {
            return Err(Error::invalid(format!("storage option {name:?} is no http or https URL")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(options: &[(&str, &str)]) -> BTreeMap<String, String> {
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn base(id: u32, path: &str) -> BasePath {
        BasePath { id, name: None, is_dataset_root: false, path: path.to_owned() }
    }

    fn options_of(params: &ObjectStoreParams) -> BTreeMap<String, String> {
        params
            .storage_options()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    #[test]
    fn a_base_has_its_own_options_or_the_shared_ones() {
        let options = StorageOptions::new(given(&[
            ("key", "mine"),
            ("region", "here"),
            ("base_7.key", "seventh"),
            ("base:s3://other:9000/x/:key", "theirs"),
        ]))
        .unwrap();
        let of = |id, path| options_of(&options.base_params(&base(id, path)));
        assert_eq!(of(1, "s3://other:9000/x"), given(&[("key", "theirs")]));
        assert_eq!(of(7, "s3://other:9000/x/"), given(&[("key", "theirs")]));
        assert_eq!(of(7, "s3://b"), given(&[("key", "seventh"), ("region", "here")]));
        let shared = given(&[("key", "mine"), ("region", "here")]);
        assert_eq!(of(8, "s3://b"), shared);
        assert_eq!(options_of(&options.params()), shared);
        assert_eq!(options.shared(), shared);
        for path in ["s3://other:9000/x", "s3://other:9000/x/"] {
            assert_eq!(options_of(&options.own_params(None)[path]), given(&[("key", "theirs")]));
        }
        assert!(!format!("{options:?}").contains("theirs"), "{options:?}");
    }

    #[test]
    fn options_of_no_base_are_refused_by_name() {
        let options = StorageOptions::new(given(&[("base:s3://b/x:key", "k")])).unwrap();
        options.check_bases([&base(1, "s3://b/x/")]).unwrap();
        let error = options.check_bases([&base(1, "s3://b/y")]).unwrap_err();
        assert!(["s3://b/x", "s3://b/y"].iter().all(|p| error.message().contains(p)), "{error}");
        let scoped = StorageOptions::new(given(&[("base_2.key", "k")])).unwrap();
        scoped.check_bases([&base(2, "s3://b/x")]).unwrap();
        let error = scoped.check_bases([&base(1, "s3://b/x")]).unwrap_err();
        assert!(error.message().contains("base_2.key"), "{error}");
    }

    #[test]
    fn names_of_no_form_are_refused_without_their_secrets() {
        for name in ["base:", "base:key", "base:s3://b", "base:s3://b/x:", "base::key"] {
            let error = StorageOptions::new(given(&[(name, "v")])).unwrap_err();
            assert!(error.message().contains("base:<path"), "{name}: {error}");
        }
        let name = "base:s3://key:hidden@b/x:region";
        let error = StorageOptions::new(given(&[(name, "v")])).unwrap_err();
        assert!(!error.message().contains("hidden"), "{error}");
    }

    #[test]
    fn endpoints_of_bases_are_checked_too() {
        let options = given(&[("base:s3://b/x:aws_endpoint", "no url")]);
        let error = check_options(&StorageOptions::new(options).unwrap()).unwrap_err();
        assert!(error.message().contains("base:s3://b/x:aws_endpoint"), "{error}");
    }
}
