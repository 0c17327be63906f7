# Archives of other programs' own tests, and programs that make images, for the engine tests: read by scripts/setup.
# They come from Debian's source and binary packages, of the archive that this machine's own apt configuration names.
# apt checks their signatures and digests; nothing of them is installed here.
# shellcheck shell=bash disable=SC2154  # cache, checkout and venv are set by scripts/setup

archives_version=1 # of what make_archives does with the packages: archives made by another one are made anew
archive_sources=(libarchive tar)
python_tests=libpython3.11-testsuite # built from the source of CPython, and a sixth of its size

make_archives() {
    local folder=$cache/archives recipe="$archives_version ${archive_sources[*]} $python_tests"
    # The recipe lies in the folder, which gets its name when it is whole.
    [[ -e $folder/recipe && $(<"$folder/recipe") = "$recipe" ]] && return
    command -v apt-get >/dev/null || fail "the archives come from Debian's packages, and there is no apt-get"
    say "making $folder of the tests of ${archive_sources[*]} and Python; this takes a minute"
    rm -rf "$folder.new"
    mkdir -p "$folder.new"
    unpack_packages "$folder.new/python" "$python_tests"
    download_sources "$folder.new/sources" "${archive_sources[@]}"
    quietly "$venv/bin/python" "$checkout/scripts/setuplib/archives.py" "$folder.new"
    rm -r "$folder.new/python" "$folder.new/sources"
    echo "$recipe" >"$folder.new/recipe"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

download_sources() { # FOLDER SOURCE-PACKAGE...
    local folder=$1 own
    shift
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    source_lines >"$folder/sources.list"
    [[ -s $folder/sources.list ]] || {
        quietly apt update
        source_lines >"$folder/sources.list"
    }
    [[ -s $folder/sources.list ]] || fail "apt is not configured for an archive of Debian's"
    own=(
        -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root
    )
    (
        cd "$folder"
        quietly apt "${own[@]}" -o APT::Update::Error-Mode=any update && quietly apt "${own[@]}" source --download-only "$@"
    ) || fail "no source packages of $* can be had from: $(xargs -n 1 <"$folder/sources.list" | grep : | sort -u | xargs)"
}

source_lines() { # sources.list(5) for the sources of what this machine has from Debian
    apt-get indextargets --format 'deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' 'Component: main' | sed '/-backports/d' | sort -u
}

# Unpacked, not installed, as the engines are.
unpack_builders() {
    [[ -e $cache/builders/version ]] ||
        unpack_programs "$cache/builders" usr/bin/buildah buildah golang-github-containers-common
}
