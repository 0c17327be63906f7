# Root file systems of other Debian releases, for `scripts/vm --system`: read by scripts/setup.
# Each is a folder in the cache, made by mmdebstrap from the archive that this machine's own apt configuration names,
# with lists and cache of its own; nothing of it is installed here.
# shellcheck shell=bash disable=SC2154  # cache is set by scripts/setup

known_systems="trixie sid"
recipe_version=1 # of make_system: a system made by another one is made anew

# The kernel, what dmthin calls and imports, what its tests import, and the engines.
system_packages=(
    user-mode-linux kmod udev iproute2 mount util-linux procps busybox-static
    dmsetup thin-provisioning-tools e2fsprogs xfsprogs
    python3 python3-sh python3-pyudev python3-psutil python3-zstandard python3-aiohttp python3-grpclib python3-tomlkit
    python3-protobuf python3-grpcio python3-pytest python3-pytest-timeout python3-hypothesis
    docker.io docker-cli docker-buildx containerd runc tini ca-certificates
    acl attr libcap2-bin bzip2 xz-utils zstd
)
system_options=(
    --mode=root --variant=minbase
    --aptopt='APT::Install-Recommends "false"'
    --aptopt='Acquire::Check-Valid-Until "false"' # a mirror may stand still; signatures are checked all the same
    --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/doc/*'
)

make_system() { # NAME
    local name=$1 folder=$cache/systems/$1 recipe archive
    recipe="$name $recipe_version: ${system_options[*]} ${system_packages[*]}"
    # The recipe lies in the folder, which gets its name when it is whole.
    [[ -e $folder/etc/dmthin-recipe && $(<"$folder/etc/dmthin-recipe") = "$recipe" ]] && return
    require_root "$folder"
    archive=$(debian_archive)
    [[ $archive ]] || {
        quietly apt update
        archive=$(debian_archive)
    }
    [[ $archive ]] || fail "apt is not configured for an archive of Debian's"
    say "making $folder: $name, with its kernel, engines, tools and Python; this takes some minutes"
    mkdir -p "$cache/systems"
    rm -rf --one-file-system "$folder.new"
    quietly unshare --mount mmdebstrap "${system_options[@]}" --include="$(
        IFS=,
        echo "${system_packages[*]}"
    )" "$name" "$folder.new" "deb $archive $name main"
    make_kernel_relative "$folder.new"
    echo "$recipe" >"$folder.new/etc/dmthin-recipe"
    rm -rf --one-file-system "$folder"
    mv "$folder.new" "$folder"
}

require_root() { # WHAT
    ((EUID == 0)) || fail "only root can make $1"
}

# The kernel is a program for the release's libc, which this machine's may be too old for. It names its loader by a path
# of 27 bytes; without the first slash that is one below the current folder, which scripts/vm makes the system's.
# (Started by a loader that is itself the program, user-mode-linux finds its break far from where it expects it.)
make_kernel_relative() { # FOLDER
    LC_ALL=C sed 's|/lib64/ld-linux-x86-64\.so\.2|lib64//ld-linux-x86-64.so.2|' "$1/usr/bin/linux.uml" >"$1/usr/bin/linux.here"
    chmod 755 "$1/usr/bin/linux.here"
}

debian_archive() { # the address from which this machine has its Debian
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
        'Component: main' | sort -u | head -n 1
}
