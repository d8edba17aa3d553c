# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by gibil_runtime.sh: bin java_arch label opt problem version wanted work
# Part of gibil-runtime: Java, Maven, Gradle, Ruby, PHP and Composer.

install_java() {
    base=${ADOPTIUM_MIRROR:-https://api.adoptium.net/v3}
    major=${wanted%%.*}
    major=${major:-21}
    if reach "$base" "$base/assets/latest/$major/hotspot?architecture=$java_arch&image_type=jdk&os=linux&vendor=eclipse" \
        "$work/index"; then
        tr -d '\n' <"$work/index" | sed 's/.*"package": *{\([^}]*\)}.*/\1/' >"$work/offer"
        url=$(sed -n 's/.*"link": *"\([^"]*\)".*/\1/p' "$work/offer")
        sum=$(sed -n 's/.*"checksum": *"\([0-9a-f]*\)".*/\1/p' "$work/offer")
        if test -z "$url"; then
            seek "$base" "no such version"
        elif download "$url" "$work/jdk.tar.gz" 900; then
            check "$work/jdk.tar.gz" sha256 "$sum"
            unpack "$work/jdk.tar.gz" "$work/tree"
            trust_java "$work/tree"
            keep "$work/tree" "$opt/java-$major" bin java javac
            expose_java "$opt/java-$major"
            return 0
        else
            seek "$url" "$problem"
        fi
    fi
    from_distribution "openjdk-$major-jdk-headless" "openjdk-$major-jdk-headless" || nowhere
    for home in /usr/lib/jvm/java-"$major"-openjdk-*; do
        test ! -x "$home/bin/javac" || expose_java "$home"
    done
}

expose_java() {
    expose "$1/bin" java javac jar javadoc jshell keytool
    for_tasks "JAVA_HOME=$1"
}

# trust_java HOME: add the operator's certificates, which a JDK doesn't read from the system
trust_java() {
    test -r /etc/gibil/ca.pem || return 0
    csplit -s -z -n 3 -f "$work/ca-" /etc/gibil/ca.pem '/-----BEGIN CERTIFICATE-----/' '{*}'
    for certificate in "$work"/ca-*; do
        "$1/bin/keytool" -importcert -noprompt -trustcacerts -cacerts -storepass changeit -alias "gibil-${certificate##*-}" \
            -file "$certificate" >/dev/null 2>&1 || true
    done
}

need_java() { has javac || "$0" java >&2 || fail "$label: it needs java, see above"; }

install_maven() {
    need_java
    base=${MAVEN_MIRROR:-https://archive.apache.org/dist/maven/maven-3}
    if reach "$base" "$base/" "$work/index"; then
        version=$(sed -n 's/.*href="\([0-9.]*\)\/".*/\1/p' "$work/index" | newest)
        test -n "$version" || fail "there is no maven $wanted; see $base"
        file=apache-maven-$version-bin.tar.gz
        fetch "$base/$version/binaries/$file.sha512" "$work/sum"
        fetch "$base/$version/binaries/$file" "$work/$file"
        check "$work/$file" sha512 "$(cut -d ' ' -f 1 "$work/sum")"
        unpack "$work/$file" "$work/tree"
        keep "$work/tree" "$opt/maven-$version" bin mvn
        return 0
    fi
    from_distribution maven maven || nowhere
}

install_gradle() {
    need_java
    base=${GRADLE_MIRROR:-https://services.gradle.org}
    if reach "$base" "$base/versions/all" "$work/index"; then
        version=$(sed -n 's/.*"version" *: *"\([0-9.]*\)".*/\1/p' "$work/index" | newest)
        test -n "$version" || fail "there is no gradle $wanted; see $base"
        file=gradle-$version-bin.zip
        fetch "$base/distributions/$file.sha256" "$work/sum"
        fetch "$base/distributions/$file" "$work/$file"
        check "$work/$file" sha256 "$(cut -d ' ' -f 1 "$work/sum")"
        unzip_to "$work/$file" "$work/tree"
        keep "$work/tree/gradle-$version" "$opt/gradle-$version" bin gradle
        return 0
    fi
    from_distribution gradle gradle || nowhere
}

# Ruby's authors publish no builds for Linux.
install_ruby() { from_distribution ruby ruby ruby-dev bundler || nowhere; }

# need_bundle: a ruby that Debian installed for another package has neither Bundler nor the headers that extensions need
need_bundle() { has bundle || from_distribution '' ruby-dev bundler || say "going on without bundle: ${looked##*, }"; }

# PHP's authors publish no builds for Linux.
install_php() {
    from_distribution php-cli php-cli php-bcmath php-curl php-gd php-intl php-mbstring php-sqlite3 php-xml php-zip || nowhere
}

install_composer() {
    has php || "$0" php >&2 || fail "$label: it needs php, see above"
    base=${COMPOSER_MIRROR:-https://getcomposer.org/download}
    case $wanted in
        *.*.*) folder=$wanted ;;
        *) folder=latest-${wanted:-2} folder=${folder%%.*}.x ;;
    esac
    if reach "$base" "$base/$folder/composer.phar.sha256sum" "$work/sum"; then
        fetch "$base/$folder/composer.phar" "$work/composer.phar"
        check "$work/composer.phar" sha256 "$(cut -d ' ' -f 1 "$work/sum")"
        mkdir -p "$work/tree"
        mv "$work/composer.phar" "$work/tree/composer"
        chmod 755 "$work/tree/composer"
        keep "$work/tree" "$opt/composer-${wanted:-2}" . composer
        return 0
    fi
    from_distribution composer composer unzip || nowhere
}
