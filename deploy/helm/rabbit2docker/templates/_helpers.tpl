{{- define "rabbit2docker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Short enough for the suffix "-docker-api" within 63 characters. */}}
{{- define "rabbit2docker.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Name of this installation. A chart may have this one several times, under different aliases. */}}
{{- define "rabbit2docker.instance" -}}
{{- if eq .Chart.Name "rabbit2docker" }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Both lists of Secrets for pulling images: that of the chart, and that of the chart it is a dependency of. */}}
{{- define "rabbit2docker.imagePullSecrets" -}}
{{- with concat .Values.imagePullSecrets (get (default dict .Values.global) "imagePullSecrets" | default list) | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rabbit2docker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rabbit2docker.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "rabbit2docker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.dockerApiLabels" -}}
{{ include "rabbit2docker.selectorLabels" . }}
app.kubernetes.io/component: docker-api
{{- end }}

{{- define "rabbit2docker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "rabbit2docker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* An image by tag, or by digest, which wins. Takes an `image` of the values, and a default tag. */}}
{{- define "rabbit2docker.imageOf" -}}
{{- $image := first . }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default (last .) $image.tag) }}
{{- end }}
{{- end }}

{{- /* The image of consumers and Jobs. */}}
{{- define "rabbit2docker.image" -}}
{{- $_ := required "image.repository is not set. Build the image with the Dockerfile, push it, and set its name." .Values.image.repository }}
{{- include "rabbit2docker.imageOf" (list .Values.image .Chart.AppVersion) }}
{{- end }}

{{- /* The image of the hub's service: that of the consumers, unless hubService.image says something else. */}}
{{- define "rabbit2docker.hubImage" -}}
{{- $image := .Values.hubService.image }}
{{- if $image.repository }}
{{- include "rabbit2docker.imageOf" (list $image .Chart.AppVersion) }}
{{- else if or $image.tag $image.digest }}
{{- include "rabbit2docker.imageOf" (list (merge (dict "repository" .Values.image.repository) $image) .Chart.AppVersion) }}
{{- else }}
{{- include "rabbit2docker.image" . }}
{{- end }}
{{- end }}

{{- /* A directory name on nodes that is unique to the release. The path of a socket may have up to 107 bytes. */}}
{{- define "rabbit2docker.nodeDirectory" -}}
{{- $name := printf "%s-%s" .Release.Namespace (include "rabbit2docker.fullname" .) }}
{{- if gt (len $name) 60 }}
{{- printf "%s-%s" ($name | trunc 40 | trimSuffix "-") ($name | sha256sum | trunc 10) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.socketDirectory" -}}
{{- default (printf "/var/run/rabbit2docker/%s" (include "rabbit2docker.nodeDirectory" .)) .Values.dockerApi.socketDirectory | trimSuffix "/" }}
{{- end }}

{{- define "rabbit2docker.socket" -}}
{{ include "rabbit2docker.socketDirectory" . }}/docker.sock
{{- end }}

{{- /* The directory in which builders hold their images. */}}
{{- define "rabbit2docker.leases" -}}
{{ include "rabbit2docker.socketDirectory" . }}/disk
{{- end }}

{{- /* Non-empty if the disks of the engines are cleaned. */}}
{{- define "rabbit2docker.cleansDisks" -}}
{{- if and .Values.dockerApi.enabled (or .Values.dockerApi.disk.maxPercent .Values.dockerApi.disk.maxBytes) }}true{{ end }}
{{- end }}

{{- /* The directory of a node in which an engine keeps its data. */}}
{{- define "rabbit2docker.storagePath" -}}
{{ default (printf "/var/lib/rabbit2docker/%s" (include "rabbit2docker.nodeDirectory" .)) .Values.dockerApi.storage.path }}
{{- end }}

{{- define "rabbit2docker.engineCleanerName" -}}
{{ include "rabbit2docker.fullname" . }}-cleaner
{{- end }}

{{- /* Non-empty if builds get Secrets of their own. */}}
{{- define "rabbit2docker.perBuildSecrets" -}}
{{- range $tenant, $has := .Values.tenantCredentials }}
{{- if ($has).git }}true{{ end }}
{{- end }}
{{- if .Values.personalCredentials.namespace }}true{{ end }}
{{- end }}

{{- /* Not empty if a tenant has nodes of its own. */}}
{{- define "rabbit2docker.tenantNodes" -}}
{{- $tenants := .Values.config.tenants }}
{{- if kindIs "map" $tenants }}
{{- range $tenant, $has := $tenants }}
{{- if or ($has).node_selector ($has).tolerations }}true{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The names of a volume with credentials for git. Take a list: the tenant, and the host. */}}
{{- define "rabbit2docker.gitVolume" -}}
git-{{ join " " . | sha256sum | trunc 10 }}
{{- end }}

{{- define "rabbit2docker.pushVolume" -}}
push-{{ . | sha256sum | trunc 10 }}
{{- end }}

{{- define "rabbit2docker.gitDirectory" -}}
/etc/rabbit2docker/tenants/{{ first . }}/{{ include "rabbit2docker.gitVolume" . }}
{{- end }}

{{- /* The credentials of a tenant for git, by host, as settings name their files. Takes a list: the tenant, and its values. */}}
{{- define "rabbit2docker.gitSettings" -}}
{{- $tenant := first . }}
{{- $hosts := dict }}
{{- range $host, $git := (last .).git }}
{{- $directory := include "rabbit2docker.gitDirectory" (list $tenant $host) }}
{{- $credential := dict }}
{{- range $setting, $key := dict "token_file" "tokenKey" "app_key_file" "appKeyKey" "ssh_key_file" "sshKeyKey" "known_hosts_file" "knownHostsKey" }}
{{- with get $git $key }}
{{- $_ := set $credential $setting (printf "%s/%s" $directory .) }}
{{- end }}
{{- end }}
{{- with $git.user }}
{{- $_ := set $credential "user" . }}
{{- end }}
{{- with $git.appId }}
{{- $_ := set $credential "app_id" (toString .) }}
{{- end }}
{{- with $git.submoduleAccounts }}
{{- $_ := set $credential "submodule_accounts" . }}
{{- end }}
{{- $_ := set $hosts $host $credential }}
{{- end }}
{{- $hosts | toYaml }}
{{- end }}

{{- /* Fails if `config` contains a setting that the chart sets, or a password. */}}
{{- define "rabbit2docker.checkConfig" -}}
{{- $forbidden := dict
  "executor" "the chart always uses the kubernetes executor"
  "amqp.url" "put it into a Secret, and set amqp.existingSecret to the name of the Secret"
  "amqp.management_url" "put it into the Secret amqp.existingSecret, and set amqp.managementUrlKey to its key"
  "providers.github_token" "put it into a Secret, and set githubToken.existingSecret to the name of the Secret"
  "providers.gitlab_token" "put it into a Secret, and set gitlabToken.existingSecret to the name of the Secret"
  "hub.bind" "set hubService.service.port"
  "hub.store_url" "put it into a Secret, and set hubService.database.existingSecret to the name of the Secret"
  "hub.tokens" "put them into a Secret, and set hubService.tokens.existingSecret to the name of the Secret"
  "hub.webhooks" "put them into a Secret as JSON, and set hubService.webhooks.existingSecret to the name of the Secret"
  "hub.dead_letters_url" "put it into a Secret, and set hubService.deadLetters.existingSecret to the name of the Secret"
  "hub.build_token_secret" "put it into a Secret, and set hubService.buildToken.existingSecret to the name of the Secret"
  "http.bind" "set service.port"
  "docker.host" "builds use the docker-api on their node"
  "kubernetes.namespace" "builds run in the namespace of the release"
  "kubernetes.kubeconfig" "the consumer uses its service account"
  "kubernetes.context" "the consumer uses its service account"
  "kubernetes.push_secret" "set pushSecret"
  "kubernetes.tenants" "set tenantCredentials"
  "kubernetes.personal_namespace" "set personalCredentials.namespace"
}}
{{- if .Values.dockerApi.enabled }}
{{- $_ := set $forbidden "kubernetes.docker_socket" "set dockerApi.socketDirectory" }}
{{- $_ := set $forbidden "kubernetes.docker_api_labels" "the chart uses the labels of its own docker-api" }}
{{- $_ := set $forbidden "kubernetes.docker_group" "set dockerApi.group" }}
{{- $_ := set $forbidden "engine.disk" "set dockerApi.disk" }}
{{- end }}
{{- if .Values.pushSecret }}
{{- $_ := set $forbidden "docker.config" "the chart mounts pushSecret there" }}
{{- end }}
{{- $config := .Values.config }}
{{- range $path, $instead := $forbidden }}
{{- $group := $config }}
{{- $keys := splitList "." $path }}
{{- range initial $keys }}
{{- $group = get (default dict $group) . | default dict }}
{{- end }}
{{- if hasKey $group (last $keys) }}
{{- fail (printf "config.%s cannot be set: %s." $path $instead) }}
{{- end }}
{{- end }}
{{- if and $config.hub (not .Values.hubService.enabled) }}
{{- fail "config.hub cannot be set: hubService.enabled is false." }}
{{- end }}
{{- if and .Values.consumer.enabled (not .Values.dockerApi.enabled) }}
{{- range list "docker_socket" "docker_api_labels" }}
{{- if not (get (default dict $config.kubernetes) .) }}
{{- fail (printf "config.kubernetes.%s is not set. It is required if dockerApi.enabled is false." .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.consumer.enabled (not (get (default dict $config.images) "prefix")) }}
{{- fail "config.images.prefix is not set. It names the registry to push to, such as registry.example.org/hub/r2d-." }}
{{- end }}
{{- end }}

{{- /* The settings of the consumer: `config`, and those derived from other values. */}}
{{- define "rabbit2docker.settings" -}}
{{- include "rabbit2docker.checkConfig" . }}
{{- $kubernetes := dict "namespace" .Release.Namespace }}
{{- if .Values.dockerApi.enabled }}
{{- $_ := set $kubernetes "docker_socket" (include "rabbit2docker.socket" .) }}
{{- $_ := set $kubernetes "docker_api_labels" (include "rabbit2docker.dockerApiLabels" . | fromYaml) }}
{{- $_ := set $kubernetes "docker_group" (int .Values.dockerApi.group) }}
{{- with .Values.dockerApi.tolerations }}
{{- $_ := set $kubernetes "tolerations" . }}
{{- end }}
{{- end }}
{{- $ours := dict "executor" "kubernetes" "http" (dict "bind" "0.0.0.0:8090") "kubernetes" $kubernetes }}
{{- with .Values.pushSecret }}
{{- $_ := set $kubernetes "push_secret" . }}
{{- $_ := set $ours "docker" (dict "config" "/etc/rabbit2docker/docker") }}
{{- end }}
{{- $tenants := dict }}
{{- range $tenant, $has := .Values.tenantCredentials }}
{{- with ($has).pushSecret }}
{{- $_ := set $tenants $tenant (dict "push_secret" .) }}
{{- end }}
{{- end }}
{{- if $tenants }}
{{- $_ := set $kubernetes "tenants" $tenants }}
{{- end }}
{{- with .Values.personalCredentials.namespace }}
{{- $_ := set $kubernetes "personal_namespace" . }}
{{- end }}
{{- $config := deepCopy .Values.config }}
{{- $own := dict }}
{{- range $tenant, $has := .Values.tenantCredentials }}
{{- $tenantOwn := dict }}
{{- if ($has).git }}
{{- $_ := set $tenantOwn "git" (include "rabbit2docker.gitSettings" (list $tenant $has) | fromYaml) }}
{{- end }}
{{- if ($has).pushSecret }}
{{- $_ := set $tenantOwn "docker_config" (printf "/etc/rabbit2docker/tenants/%s/docker" $tenant) }}
{{- end }}
{{- if $tenantOwn }}
{{- $_ := set $own $tenant $tenantOwn }}
{{- end }}
{{- end }}
{{- if $own }}
{{- $named := default (list "default") $config.tenants }}
{{- if kindIs "slice" $named }}
{{- $names := $named }}
{{- $named = dict }}
{{- range $names }}
{{- $_ := set $named . dict }}
{{- end }}
{{- end }}
{{- $_ := set $config "tenants" $named }}
{{- $_ := set $ours "tenants" $own }}
{{- end }}
{{- /* `config` takes precedence over the defaults of the chart. */}}
{{- mergeOverwrite (dict "instance" (include "rabbit2docker.instance" .)) $ours (omit $config "hub") | toYaml }}
{{- end }}

{{- /* dockerd's daemon.json. Engines before 28 only support defaultKeepStorage, later ones also an upper limit. */}}
{{- define "rabbit2docker.daemonConfig" -}}
{{- $size := .Values.dockerApi.buildCache }}
{{- $gc := dict "enabled" true "defaultKeepStorage" $size "defaultMaxUsedSpace" $size }}
{{- $config := dict "builder" (dict "gc" $gc) }}
{{- with .Values.dockerApi.insecureRegistries }}
{{- $_ := set $config "insecure-registries" . }}
{{- end }}
{{- mergeOverwrite $config (deepCopy .Values.dockerApi.daemonConfig) | toPrettyJson }}
{{- end }}

{{- /* Takes a list: the events of Helm, and the weight. */}}
{{- define "rabbit2docker.removalHook" -}}
helm.sh/hook: {{ first . }}
helm.sh/hook-weight: {{ last . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- /* What the pods of both removal Jobs have in common. Takes a list: the root, and the name of the service account. */}}
{{- define "rabbit2docker.removalPod" -}}
{{- $root := first . -}}
restartPolicy: Never
serviceAccountName: {{ last . }}
enableServiceLinks: false
{{- include "rabbit2docker.imagePullSecrets" $root }}
{{- with $root.Values.consumer.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.consumer.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $root.Values.consumer.podSecurityContext | nindent 2 }}
{{- end }}

{{- define "rabbit2docker.removalContainer" -}}
image: {{ include "rabbit2docker.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.consumer.containerSecurityContext | nindent 2 }}
{{- end }}

{{- /* Variables of remove.py. */}}
{{- define "rabbit2docker.removalEnvironment" -}}
- name: NAMESPACE
  value: {{ .Release.Namespace }}
- name: CONSUMERS
  value: app.kubernetes.io/component=consumer,app.kubernetes.io/name={{ include "rabbit2docker.name" . }},app.kubernetes.io/instance={{ .Release.Name }}
{{- end }}
